"""The encoder: equal to three independent Vision Transformers, and what it promises about sizes, positions and files.

Every comparison with another library is in fp32, on random weights in every parameter, to within 1e-4 of a value plus
1e-5 of the largest value of its tensor (or of 1).
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import ViTConfig, ViTModel

from mpp.models.blocks import Attention, attend
from mpp.models.positions import RelativePositions
from mpp.models.vit import VARIANTS, ViT

POS_EMBEDS = ["1d", "2d", "relative", "none"]
TINY: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 8}

Tensors = dict[str, Tensor]
Forward = Callable[[Any, Tensor], Tensor]


@pytest.fixture(autouse=True)
def one_thread_and_one_seed() -> Iterator[None]:
    """Models this small run faster on one thread (17 s rather than 51 s for this file on 2 busy cores)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Fill every parameter, biases, norms and tokens too, with noise that keeps activations near 1."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.copy_(1 + 0.3 * noise if name.endswith("weight") else 0.3 * noise)
        elif parameter.ndim == 3:  # [class] and position embeddings
            parameter.copy_(noise)
        else:
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))


def tiny_vit(pos_embed: Any = "1d", **options: Any) -> ViT:
    """A small model with random weights everywhere, in evaluation mode."""
    vit = ViT(**(TINY | {"pos_embed": pos_embed} | options))
    randomise(vit)
    return vit.eval()


def random_images(*shape: int) -> Tensor:
    """Normal noise of a shape, the same in every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def from_timm(theirs: Tensors) -> Tensors:
    """timm's names and shapes -> ours; for weights and for their gradients."""
    ours = {name.replace("patch_embed.proj.", "patch_embed."): tensor for name, tensor in theirs.items()}
    ours["patch_embed.weight"] = ours["patch_embed.weight"].flatten(1)
    return ours


def from_torchvision(theirs: Tensors) -> Tensors:
    """torchvision's names and shapes -> ours; its head is left out."""
    renames = {
        r"^conv_proj\.": "patch_embed.proj.",
        r"^class_token$": "cls_token",
        r"^encoder\.pos_embedding$": "pos_embed",
        r"^encoder\.ln\.": "norm.",
        r"^encoder\.layers\.encoder_layer_(\d+)\.": r"blocks.\1.",
        r"\.ln_([12])\.": r".norm\1.",
        r"\.self_attention\.in_proj_": ".attn.qkv.",
        r"\.self_attention\.out_proj\.": ".attn.proj.",
        r"\.mlp\.0\.": ".mlp.fc1.",
        r"\.mlp\.3\.": ".mlp.fc2.",
    }
    return from_timm(_renamed({k: v for k, v in theirs.items() if not k.startswith("heads.")}, renames))


def from_transformers(theirs: Tensors) -> Tensors:
    """transformers' names and shapes, those of version 4 as of 5, -> ours; its queries, keys and values are fused."""
    renames = {
        r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
        r"^embeddings\.cls_token$": "cls_token",
        r"^embeddings\.position_embeddings$": "pos_embed",
        r"^layernorm\.": "norm.",
        r"^(encoder\.layer|layers)\.(\d+)\.": r"blocks.\2.",
        r"\.layernorm_before\.": ".norm1.",
        r"\.layernorm_after\.": ".norm2.",
        r"\.attention\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)\.": r".attn.\2.",
        r"\.attention\.(o_proj|output\.dense)\.": ".attn.proj.",
        r"\.intermediate\.dense\.": ".mlp.fc1.",
        r"\.output\.dense\.": ".mlp.fc2.",
    }
    ours = _renamed(theirs, renames)
    for name in [name for name in ours if ".attn.q." in name]:
        parts = [ours.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        ours[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    return from_timm(ours)


def torchvision_tokens(model: Any, images: Tensor) -> Tensor:
    """All tokens after torchvision's last norm, of which its forward keeps only [class]."""
    tokens: list[Tensor] = []
    hook = model.encoder.register_forward_hook(lambda module, args, output: tokens.append(output))
    model(images)
    hook.remove()
    return tokens[0]


def timm_tokens(model: Any, images: Tensor) -> Tensor:
    """All tokens after timm's last norm."""
    return model.forward_features(images)


def transformers_tokens(model: Any, images: Tensor) -> Tensor:
    """All tokens after transformers' last norm."""
    return model(images).last_hidden_state


def assert_near(ours: Tensor, theirs: Tensor, name: str = "tokens") -> None:
    """Equal to 1e-4 of each value plus 1e-5 of the tensor's largest (or of 1)."""
    atol = 1e-5 * max(1.0, theirs.detach().abs().max().item())
    assert_close(ours, theirs, rtol=1e-4, atol=atol, msg=lambda message: f"{name}: {message}")


def assert_equal_outputs_and_gradients(
    ours: ViT, theirs: nn.Module, forward: Forward, translate: Callable[[Tensors], Tensors], images: Tensor
) -> None:
    """Give both models the same random weights; their tokens and all their gradients must be the same."""
    randomise(theirs)
    ours.load_state_dict(translate(theirs.state_dict()), strict=True)
    our_images, their_images = images.clone().requires_grad_(), images.clone().requires_grad_()
    our_tokens, their_tokens = ours.eval()(our_images), forward(theirs.eval(), their_images)
    assert_near(our_tokens, their_tokens)

    probe = random_images(*our_tokens.shape)
    (our_tokens * probe).sum().backward()
    (their_tokens * probe).sum().backward()
    assert_near(our_images.grad, their_images.grad, "gradient of the images")
    their_grads = translate({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    assert their_grads.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert parameter.grad.abs().max() > 0
        assert_near(parameter.grad, their_grads[name], f"gradient of {name}")


def _renamed(tensors: Tensors, renames: dict[str, str]) -> Tensors:
    """The tensors with each regular expression of `renames` replaced in their names, in order."""
    out = {}
    for name, tensor in tensors.items():
        for old, new in renames.items():
            name = re.sub(old, new, name)
        out[name] = tensor
    return out


# --- other libraries --------------------------------------------------------------------------------------------------


def test_our_vit_equals_torchvisions_with_the_same_weights() -> None:
    theirs = torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=12, hidden_dim=768, mlp_dim=3072
    )
    ours = ViT("B", depth=2, img_size=32)
    images = random_images(3, 3, 32, 32)
    assert_equal_outputs_and_gradients(ours, theirs, torchvision_tokens, from_torchvision, images)


@torch.inference_mode()
def test_our_vit_b_16_equals_torchvisions_vit_b_16() -> None:
    with torch.device("meta"):
        theirs, ours = torchvision.models.vit_b_16(), ViT("B")
    theirs.to_empty(device="cpu")
    randomise(theirs)
    ours.load_state_dict(from_torchvision(theirs.state_dict()), strict=True, assign=True)
    images = random_images(1, 3, 224, 224)
    assert_near(ours.eval()(images), torchvision_tokens(theirs.eval(), images))


@pytest.mark.parametrize(
    ("variant", "patch_size", "img_size"), [("Ti", 4, (16, 16)), ("Ti", 8, (24, 40)), ("S", 8, (24, 24)), ("S", 16, 48)]
)
def test_our_vit_equals_timms_with_the_same_weights(variant: str, patch_size: int, img_size: Any) -> None:
    sizes = {**VARIANTS[variant], "depth": 2}
    theirs = TimmViT(img_size=img_size, patch_size=patch_size, num_classes=0, **sizes)
    ours = ViT(variant, depth=2, img_size=img_size, patch_size=patch_size)
    images = random_images(3, 3, *ours.img_size)
    assert_equal_outputs_and_gradients(ours, theirs, timm_tokens, from_timm, images)


def test_our_vit_equals_timms_with_one_channel_and_another_mlp_ratio() -> None:
    sizes: dict[str, Any] = {"embed_dim": 96, "num_heads": 4, "depth": 3, "mlp_ratio": 2.5, "in_chans": 1}
    theirs = TimmViT(img_size=15, patch_size=5, num_classes=0, **sizes)
    ours = ViT(img_size=15, patch_size=5, **sizes)
    assert_equal_outputs_and_gradients(ours, theirs, timm_tokens, from_timm, random_images(2, 1, 15, 15))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_our_vit_equals_transformers_with_the_same_weights(attention: str) -> None:
    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
        attn_implementation=attention,
    )
    theirs = ViTModel(config, add_pooling_layer=False)
    ours = ViT("Ti", depth=2, img_size=32, patch_size=8)
    images = random_images(3, 3, 32, 32)
    assert_equal_outputs_and_gradients(ours, theirs, transformers_tokens, from_transformers, images)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "patch_size", "timm_name", "millions"),
    [
        ("Ti", 16, "vit_tiny_patch16_224", 5.7),
        ("S", 16, "vit_small_patch16_224", 22),
        ("B", 16, "vit_base_patch16_224", 86),
        ("L", 16, "vit_large_patch16_224", 307),
        ("H", 14, "vit_huge_patch14_224", 632),
    ],
)
def test_parameter_counts_are_timms_and_the_papers(
    variant: str, patch_size: int, timm_name: str, millions: float
) -> None:
    """timm's encoder to the parameter; the papers' tables, which count a head of 1,000 classes too, to 2 %."""
    with torch.device("meta"):
        ours = ViT(variant, patch_size=patch_size)
        theirs = timm.create_model(timm_name, num_classes=0)
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    assert (count + (ours.embed_dim + 1) * 1000) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
@pytest.mark.parametrize(
    ("img_size", "patch_size", "in_chans", "tokens"),
    [((16, 40), 8, 3, 11), ((40, 16), 8, 1, 11), ((15, 20), 5, 5, 13), (21, 7, 3, 10), ((3, 4), 1, 2, 13)],
)
def test_any_rectangle_channels_and_patch_size_give_a_token_a_patch_and_class(
    pos_embed: str, img_size: Any, patch_size: int, in_chans: int, tokens: int
) -> None:
    vit = tiny_vit(pos_embed, img_size=img_size, patch_size=patch_size, in_chans=in_chans)
    out = vit(random_images(2, in_chans, *vit.img_size))
    assert out.shape == (2, tokens, 24)
    assert vit.num_patches == tokens - 1
    assert out.isfinite().all()


def test_patches_come_in_reading_order_and_see_only_their_own_pixels() -> None:
    vit = tiny_vit(img_size=(16, 24))
    images = random_images(1, 3, 16, 24)
    changed = images.clone()
    changed[:, :, 8:, 16:] += 1  # the last patch of the second row
    moved = (vit.embed(changed) != vit.embed(images)).any(-1)[0]
    assert moved.tolist() == [False] * 5 + [True]


def test_an_image_of_another_size_is_an_error_that_names_both_sizes() -> None:
    vit = tiny_vit(img_size=(32, 48))
    with pytest.raises(ValueError, match=r"48x32.*32x48"):
        vit(random_images(1, 3, 48, 32))


@pytest.mark.parametrize("img_size", [30, (32, 30), (30, 32), 0, (32, 4)])
def test_an_img_size_that_is_not_a_multiple_of_the_patch_is_an_error(img_size: Any) -> None:
    with pytest.raises(ValueError, match="not a multiple of patch_size 8"):
        ViT(**(TINY | {"img_size": img_size}))


def test_a_resize_that_is_an_error_leaves_the_model_as_it_was() -> None:
    vit = tiny_vit()
    with pytest.raises(ValueError, match="not a multiple of patch_size 8"):
        vit.resize(30)
    assert (vit.img_size, vit.grid) == ((32, 32), (4, 4))
    assert vit(random_images(1, 3, 32, 32)).shape == (1, 17, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "XL"}, "'XL'.*Ti"),
        ({"pos_embed": "3d"}, "'3d'.*relative"),
        ({"embed_dim": 32, "num_heads": 3}, "32.*3 heads"),
        ({"embed_dim": 15, "num_heads": 3, "pos_embed": "2d"}, "15.*halves"),
    ],
)
def test_options_that_make_no_model_are_errors_that_name_them(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViT(**options)


# --- position embeddings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pos_embed", "names"),
    [
        ("1d", {"pos_embed"}),
        ("2d", {"pos_embed_cls", "pos_embed_rows", "pos_embed_cols"}),
        ("relative", {"blocks.0.attn.relative.table", "blocks.1.attn.relative.table"}),
        ("none", set()),
    ],
)
def test_position_embeddings_train(pos_embed: str, names: set[str]) -> None:
    vit = tiny_vit(pos_embed, img_size=(16, 24))
    tokens = vit.train()(random_images(2, 3, 16, 24))
    (tokens * random_images(*tokens.shape)).sum().backward()
    grads = {name: parameter.grad for name, parameter in vit.named_parameters()}
    assert {name for name in grads if "pos_embed" in name or "relative" in name} == names
    assert all(grad.isfinite().all() for grad in grads.values())
    for name in names:
        assert (grads[name].abs().amax(-1) > 0).all()  # every place, offset and [class] vector learns


@torch.inference_mode()
@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
def test_only_without_position_embeddings_is_the_order_of_patches_nothing(pos_embed: str) -> None:
    vit = tiny_vit(pos_embed)
    embeddings = vit.embed(random_images(2, 3, 32, 32))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    tokens, permuted = vit.encode(embeddings), vit.encode(embeddings[:, order])
    expected = torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], dim=1)
    if pos_embed == "none":
        assert_near(permuted, expected)
    else:
        assert (permuted - expected).abs().max() > 0.05


@torch.inference_mode()
def test_2d_positions_are_a_row_half_and_a_column_half() -> None:
    vit = tiny_vit("2d", img_size=(16, 24))
    embeddings = random_images(2, 6, 24)
    tokens = vit.add_positions(embeddings)
    assert torch.equal(tokens[:, 0], (vit.cls_token + vit.pos_embed_cls).expand(2, -1, -1)[:, 0])
    for row in range(2):
        for col in range(3):
            place = torch.cat([vit.pos_embed_rows[row], vit.pos_embed_cols[col]])
            assert torch.equal(tokens[:, 1 + 3 * row + col], embeddings[:, 3 * row + col] + place)


def relative_logits_slowly(q: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    """What relative positions add to the logits (B, h, T, T), one pair of tokens at a time, [class] first."""
    height, width = grid
    offsets = table[:-3].reshape(2 * height - 1, 2 * width - 1, -1)
    class_to_patch, patch_to_class, class_to_class = table[-3:]
    logits = torch.zeros(*q.shape[:3], 1 + height * width)
    for i in range(1 + height * width):
        for j in range(1 + height * width):
            (row_i, col_i), (row_j, col_j) = divmod(i - 1, width), divmod(j - 1, width)
            if i == 0:
                vector = class_to_class if j == 0 else class_to_patch
            elif j == 0:
                vector = patch_to_class
            else:
                vector = offsets[row_i - row_j + height - 1, col_i - col_j + width - 1]
            logits[:, :, i, j] = (q[:, :, i] * vector).sum(-1) / math.sqrt(q.shape[-1])
    return logits


@torch.inference_mode()
@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (1, 5)])
def test_relative_logits_equal_a_loop_over_pairs(grid: tuple[int, int]) -> None:
    relative = RelativePositions(grid, head_dim=8)
    randomise(relative)
    q = random_images(2, 3, 1 + grid[0] * grid[1], 8)
    assert_near(relative(q), relative_logits_slowly(q, relative.table, grid))


@torch.inference_mode()
def test_relative_attention_equals_a_softmax_written_out() -> None:
    attention = Attention(24, num_heads=3, dropout=0.0, relative_grid=(2, 3))
    randomise(attention)
    x = random_images(2, 7, 24)
    q, k, v = (part.reshape(2, 7, 3, 8).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    logits = q @ k.transpose(-1, -2) / math.sqrt(8) + relative_logits_slowly(q, attention.relative.table, (2, 3))
    out = (logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 7, 24)
    assert_near(attention(x), attention.proj(out))


# --- resize -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [(5, 5), (17, 65)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("many", [1 << 24, 1])  # with the latter these are too many, and torch's own takes them
def test_attention_step_by_step_equals_torchs_in_one(
    tokens: tuple[int, int], biased: bool, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpp.models.blocks.MANY_ON_A_CPU", many)
    queries, keys = tokens
    q, k, v = (random_images(2, 3, n, 8).requires_grad_() for n in (queries, keys, keys))
    bias = random_images(2, 3, queries, keys) if biased else None
    fused = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    assert_close(attend(q, k, v, bias), fused, rtol=1e-4, atol=1e-5)
    ours = torch.autograd.grad(attend(q, k, v, bias).square().sum(), (q, k, v))
    theirs = torch.autograd.grad(fused.square().sum(), (q, k, v))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_activation_checkpointing_keeps_less_and_changes_nothing() -> None:
    """Gradients to the last bit, dropout included; what is kept for the way back is a block's input and no more."""
    images, kept = random_images(4, 3, 32, 32), {}
    vit = tiny_vit(depth=4, dropout=0.2, drop_path=0.2).train()
    gradients = {}
    for checkpointing in (False, True):
        vit.activation_checkpointing = checkpointing
        vit.zero_grad()
        torch.manual_seed(3)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            vit(images).square().mean().backward()
        kept[checkpointing] = sum(sizes)
        gradients[checkpointing] = [parameter.grad.clone() for parameter in vit.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(gradients[False], gradients[True], strict=True))
    assert kept[True] < 0.6 * kept[False]


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
def test_resizing_to_the_same_size_changes_nothing(pos_embed: str) -> None:
    vit = tiny_vit(pos_embed, img_size=(32, 48))
    before, parameters = copy.deepcopy(vit.state_dict()), list(vit.parameters())
    assert vit.resize((32, 48)) is vit
    assert all(new is old for new, old in zip(vit.parameters(), parameters, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())


@pytest.mark.parametrize(
    ("old", "new"), [((32, 32), (56, 56)), ((48, 48), (16, 16)), ((32, 48), (48, 32)), ((32, 32), (32, 72))]
)
def test_resizing_1d_positions_equals_timms_and_keeps_class(old: tuple[int, int], new: tuple[int, int]) -> None:
    vit = tiny_vit(img_size=old)
    before = vit.pos_embed.detach().clone()
    grid = [side // 8 for side in new]
    expected = resample_abs_pos_embed(before, new_size=grid, old_size=[side // 8 for side in old])
    vit.resize(new)
    assert_close(vit.pos_embed.detach(), expected, rtol=0, atol=1e-6)
    assert torch.equal(vit.pos_embed[:, 0], before[:, 0])
    assert vit.pos_embed.requires_grad
    assert (vit.img_size, vit.grid, vit.num_patches) == (new, tuple(grid), grid[0] * grid[1])


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
@pytest.mark.parametrize("new", [(48, 48), (16, 16), (16, 72)])
def test_a_constant_image_gives_finite_tokens_at_a_new_size(pos_embed: str, new: tuple[int, int]) -> None:
    vit = tiny_vit(pos_embed, img_size=(32, 40)).resize(new)
    tokens = vit(torch.ones(2, 3, *new))
    assert tokens.shape == (2, 1 + new[0] * new[1] // 64, 24)
    assert tokens.isfinite().all()
    tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in vit.parameters())


@torch.no_grad()
def test_resizing_2d_positions_interpolates_rows_and_columns_and_keeps_class() -> None:
    vit = tiny_vit("2d", img_size=(32, 48))
    ramp = torch.arange(6.0)[:, None].expand(6, 12)
    vit.pos_embed_rows.fill_(0.7)
    vit.pos_embed_cols.copy_(ramp)
    before = vit.pos_embed_cls.clone()
    vit.resize((56, 72))
    assert torch.equal(vit.pos_embed_cls, before)
    assert vit.pos_embed_rows.shape == (7, 12)
    assert vit.pos_embed_cols.shape == (9, 12)
    assert_close(vit.pos_embed_rows, torch.full((7, 12), 0.7))
    assert (vit.pos_embed_cols.diff(dim=0) > 0).all()
    assert_close(vit.pos_embed_cols[4], torch.full((12,), 2.5))  # the middle stays the middle


@torch.no_grad()
@pytest.mark.parametrize("new", [(5, 6), (2, 3), (7, 2)])
def test_resizing_relative_positions_keeps_constants_ramps_and_class(new: tuple[int, int]) -> None:
    relative = RelativePositions((3, 4), head_dim=3)
    down = torch.arange(-2.0, 3)[:, None].expand(5, 7)  # the offset in rows, and in columns
    right = torch.arange(-3.0, 4)[None].expand(5, 7)
    randomise(relative)
    relative.table[:-3] = torch.stack([down, right, torch.full((5, 7), 0.7)], dim=-1).flatten(0, 1)
    of_class = relative.table[-3:].clone()
    relative.resize(new)
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    down, right, constant = relative.table[:-3].reshape(*size, 3).unbind(-1)
    assert torch.equal(relative.table[-3:], of_class)
    assert_close(constant, torch.full(size, 0.7))
    assert (down.diff(dim=0) > 0).all()
    assert (right.diff(dim=1) > 0).all()
    assert_close(down[new[0] - 1], torch.zeros(size[1]))  # offset 0 stays offset 0
    assert_close(right[:, new[1] - 1], torch.zeros(size[0]))
    q = random_images(1, 2, 1 + new[0] * new[1], 3)
    assert_near(relative(q), relative_logits_slowly(q, relative.table, new))
    relative.resize((3, 4))
    assert_close(relative.table[:-3, 2], torch.full((35,), 0.7))
    assert (relative.table[:-3, 1].reshape(5, 7).diff(dim=1) > 0).all()


# --- files ------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def assert_same_model(ours: ViT, theirs: ViT) -> None:
    """The same sizes, and weights and tokens equal bit for bit."""
    assert (ours.img_size, ours.grid) == (theirs.img_size, theirs.grid)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    images = random_images(2, ours.in_chans, *ours.img_size)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("pos_embed", ["none", "relative"])
def test_a_way_for_positions_to_start_that_is_not_used_refuses_nothing(pos_embed: str) -> None:
    vit = ViT(
        "nano", img_size=8, patch_size=4, embed_dim=30, num_heads=3, depth=1, pos_embed=pos_embed, pos_init="sincos"
    )
    assert vit(torch.zeros(1, 3, 8, 8)).shape[-1] == 30


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
def test_a_saved_model_loads_bit_for_bit(pos_embed: str, tmp_path: Path) -> None:
    vit = tiny_vit(pos_embed, img_size=(16, 24), in_chans=1, mlp_ratio=2.0)
    vit.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors"} <= names <= {"config.json", "model.safetensors", "README.md"}
    assert_same_model(ViT.from_pretrained(tmp_path), vit)
    assert load_file(tmp_path / "model.safetensors").keys() == dict(vit.named_parameters()).keys()


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
@pytest.mark.parametrize("options", [{}, {"config": None}])  # the second is how push_to_hub calls save_pretrained
def test_a_resized_model_saves_and_loads_at_its_new_size(
    pos_embed: str, options: dict[str, Any], tmp_path: Path
) -> None:
    vit = tiny_vit(pos_embed).resize((48, 16))
    vit.save_pretrained(tmp_path, **options)
    assert json.loads((tmp_path / "config.json").read_text())["img_size"] == [48, 16]
    assert_same_model(ViT.from_pretrained(tmp_path), vit)


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
def test_loading_at_another_size_interpolates(pos_embed: str, tmp_path: Path) -> None:
    vit = tiny_vit(pos_embed)
    vit.save_pretrained(tmp_path / "small")
    loaded = ViT.from_pretrained(tmp_path / "small", img_size=48)
    assert loaded.img_size == (48, 48)
    assert_same_model(loaded, vit.resize(48))
    loaded.save_pretrained(tmp_path / "large")
    assert_same_model(ViT.from_pretrained(tmp_path / "large"), vit)


def test_loading_takes_what_huggingface_hub_before_1_0_passes(tmp_path: Path) -> None:
    vit = tiny_vit()
    vit.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    loaded = ViT._from_pretrained(model_id=str(tmp_path), proxies=None, resume_download=None, **config)
    assert_same_model(loaded, vit)


def test_loading_takes_new_rates_of_dropout(tmp_path: Path) -> None:
    vit = tiny_vit()
    vit.save_pretrained(tmp_path)
    loaded = ViT.from_pretrained(tmp_path, dropout=0.1, drop_path=0.2)
    assert (loaded.pos_drop.p, loaded.blocks[-1].drop_path.p) == (0.1, 0.2)
    assert_same_model(loaded, vit)


# --- initialisation ---------------------------------------------------------------------------------------------------


def test_the_patch_embedding_starts_lecun_normal_and_class_at_zero() -> None:
    vit = ViT("S", depth=1, img_size=32)
    weight, std = vit.patch_embed.weight, math.sqrt(1 / 768)
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert abs(weight.mean().item()) < 0.01 * std
    assert weight.abs().max() <= 2 * std / 0.8796  # truncated at two sigma of the normal it is cut from
    assert not vit.patch_embed.bias.any()
    assert not vit.cls_token.any()


@pytest.mark.parametrize(
    ("name", "fan_in", "fan_out"),
    [
        ("attn.qkv", 384, 384),  # three matrices of their own
        ("attn.proj", 384, 384),
        ("mlp.fc1", 384, 1536),
        ("mlp.fc2", 1536, 384),
    ],
)
def test_linear_layers_start_xavier_uniform(name: str, fan_in: int, fan_out: int) -> None:
    layer = ViT("S", depth=1, img_size=32).blocks[0].get_submodule(name)
    bound = math.sqrt(6 / (fan_in + fan_out))
    for matrix in layer.weight.split(fan_out):
        assert matrix.shape == (fan_out, fan_in)
        assert 0.999 * bound < matrix.abs().max() <= bound
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    if name.startswith("mlp."):
        assert layer.bias.std().item() == pytest.approx(1e-6, rel=0.2)
    else:
        assert not layer.bias.any()


def test_norms_start_as_no_change() -> None:
    norms = [module for module in ViT(**TINY).modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * TINY["depth"] + 1
    assert all((norm.weight == 1).all() and not norm.bias.any() for norm in norms)
    assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize("pos_embed", ["1d", "2d", "relative"])
def test_position_embeddings_start_normal_with_std_002(pos_embed: str) -> None:
    vit = ViT("S", depth=1, img_size=128, patch_size=8, pos_embed=pos_embed)
    tables = [p for name, p in vit.named_parameters() if "pos_embed" in name or "relative" in name]
    assert tables
    for table in tables:
        assert table.std().item() == pytest.approx(0.02, rel=0.15 if table.numel() < 1000 else 0.05)


# --- dropout and drop path --------------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"drop_path": 0.5}])
def test_dropout_and_drop_path_change_training_and_not_evaluation(options: dict[str, float]) -> None:
    plain, dropping = tiny_vit(), tiny_vit(**options)
    images = random_images(8, 3, 32, 32)
    assert torch.equal(dropping(images), plain(images))
    assert torch.equal(plain.train()(images), plain.eval()(images))
    torch.manual_seed(0)
    first, second = dropping.train()(images), dropping(images)
    assert first.isfinite().all()
    assert not torch.allclose(first, plain(images), atol=0.01)
    assert not torch.allclose(first, second, atol=0.01)


@torch.inference_mode()
def test_dropout_follows_the_positions_and_every_linear_layer_of_a_block_but_qkv() -> None:
    vit = tiny_vit(dropout=0.5).train()
    zeros: dict[str, float] = {}  # the share of zeros in what each module returns and, with "into ", in what it takes
    for name, module in vit.named_modules():
        module.register_forward_hook(
            lambda module, args, output, name=name: zeros.update(
                {name: (output == 0).float().mean().item(), f"into {name}": (args[0] == 0).float().mean().item()}
            )
        )
    vit(random_images(4, 3, 32, 32))
    dropped = [name for i in range(2) for name in (f"blocks.{i}.attn", f"into blocks.{i}.mlp.fc2", f"blocks.{i}.mlp")]
    for name in ["pos_drop", *dropped]:
        assert zeros[name] == pytest.approx(0.5, abs=0.1), name
    for name in ["patch_embed", "blocks.0.attn.qkv", "into blocks.0.attn.proj", "norm"]:
        assert zeros[name] == 0, name


@pytest.mark.parametrize("depth", [2, 5, 12])
def test_the_drop_path_rate_rises_linearly_to_the_full_rate(depth: int) -> None:
    vit = tiny_vit(depth=depth, drop_path=0.3)
    rates = [block.drop_path.p for block in vit.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.3, depth).tolist())


@torch.inference_mode()
def test_drop_path_skips_both_branches_of_a_block_a_sample_at_a_time() -> None:
    vit = tiny_vit(drop_path=0.5).train()
    block, x = vit.blocks[-1], random_images(64, 17, 24)
    torch.manual_seed(0)
    out = block(x)
    attended = x + 2 * block.attn(block.norm1(x))  # a branch that is kept counts twice, so that the mean stays
    candidates = [y + keep * block.mlp(block.norm2(y)) for y in (x, attended) for keep in (0, 2)]
    matches = torch.stack([(out - candidate).abs().amax((1, 2)) < 1e-4 for candidate in candidates])
    assert (matches.sum(0) == 1).all()
    assert (matches.sum(1) >= 6).all()  # of 64, 16 are expected each


# --- compilation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pos_embed", POS_EMBEDS)
def test_the_model_compiles_without_graph_breaks(pos_embed: str) -> None:
    torch.compiler.reset()
    vit = tiny_vit(pos_embed, dropout=0.1, drop_path=0.1).train()
    compiled = torch.compile(vit, fullgraph=True, backend="eager")
    for batch in (2, 3):  # the last batch of an epoch may be another size
        images = random_images(batch, 3, 32, 32)
        torch.manual_seed(0)
        expected = vit(images)
        torch.manual_seed(0)
        assert_near(compiled(images), expected)


@pytest.mark.parametrize("pos_embed", ["1d", "2d"])
def test_positions_that_start_as_sines_are_most_like_their_neighbours(pos_embed):
    vit = ViT("nano", img_size=(24, 32), patch_size=4, pos_embed=pos_embed, pos_init="sincos")
    places = vit.positions()[0, 1:]
    assert places.shape == (48, 128)
    like = torch.nn.functional.cosine_similarity(places[:, None], places[None], dim=-1)
    y, x = torch.arange(48) // 8, torch.arange(48) % 8
    distance = (y[:, None] - y[None]) ** 2 + (x[:, None] - x[None]) ** 2
    assert (like[distance == 1].min() > like[distance >= 9].max()).item()
    assert all(p.requires_grad for p in vit.parameters())


def test_positions_that_start_as_sines_equal_maes():
    """MAE's get_2d_sincos_pos_embed, in its own few lines of numpy: column half first there, row half first here."""
    vit = ViT("nano", img_size=16, patch_size=4, pos_init="sincos")
    omega = 1 / 10_000 ** (np.arange(32) / 32)
    for n in range(16):
        row, col = divmod(n, 4)
        expected = [np.sin(row * omega), np.cos(row * omega), np.sin(col * omega), np.cos(col * omega)]
        assert np.allclose(vit.pos_embed[0, 1 + n].detach(), np.concatenate(expected), atol=1e-6)


@pytest.mark.parametrize("pos_embed", ["1d", "relative"])
def test_asking_for_some_patches_gives_the_tokens_and_gradients_of_asking_for_all(pos_embed):
    vit = ViT("nano", img_size=16, patch_size=4, depth=3, pos_embed=pos_embed).double()
    images, places = torch.randn(3, 3, 16, 16).double(), torch.tensor([[0, 5, 15], [1, 2, 3], [7, 8, 14]])
    gradients = []
    for tokens in (
        vit.encode(vit.embed(images), places),
        torch.stack([row[1 + at] for row, at in zip(vit(images), places, strict=True)]),
    ):
        vit.zero_grad()
        tokens.sin().sum().backward()
        gradients.append([tokens.detach()] + [p.grad for p in vit.parameters()])
    for some, every in zip(*gradients, strict=True):
        assert_close(some, every, atol=1e-10, rtol=1e-8)
