"""Weights of other libraries: our ViT gives their outputs, and what it does not have is refused by name.

Models are built small, with random weights in every parameter, by the other library. Each side normalises the same
pixels by itself. Outputs agree to 1e-5 (fp32).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer import _load_weights
from torch import Tensor
from torch.testing import assert_close

from mpp.errors import UserError
from mpp.models.backbones import digest_of, load_backbone
from mpp.models.foreign.encoder import HALF, IMAGENET
from mpp.models.foreign.npz import to_jax
from mpp.models.vit import ViT
from tests.helpers import one_line
from tests.models.test_vit import randomise, torchvision_tokens

PIXELS = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
HF: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32}
HF |= {"patch_size": 8, "intermediate_size": 96}


def as_theirs(mean: Any, std: Any) -> Tensor:
    """The pixels as other libraries normalise them."""
    return (PIXELS / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


@torch.no_grad()
def assert_same(ours: ViT, tokens: Tensor, registers: int = 0) -> None:
    """Our tokens are theirs, without their registers; where they have no [class], the mean of the patches is there."""
    found = ours.eval()(PIXELS / 127.5 - 1)
    theirs = torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], 1) if ours.first else tokens[:, registers:]
    theirs = theirs if ours.first else torch.cat([theirs.mean(1, keepdim=True), theirs], 1)
    assert_close(found, theirs, rtol=1e-5, atol=1e-5)


def timm_folder(folder: Path, mean: Any, std: Any, **options: Any) -> Any:
    """A folder as timm pushes it to the hub, and its model."""
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5} | options
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    randomise(model)
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    says = {"architecture": "vit_tiny_patch16_224", "num_features": 24, "model_args": options}
    (folder / "config.json").write_text(json.dumps(says | {"pretrained_cfg": {"mean": mean, "std": std}}))
    return model


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rectangles": {"img_size": (32, 32), "patch_size": 4, "mlp_ratio": 2.5},
    "registers": {"reg_tokens": 4},
    "registers without positions": {"reg_tokens": 4, "no_embed_class": True},
    "no position of [class], LayerScale (DeiT III)": {"no_embed_class": True, "init_values": 1e-4},
    "norm before the blocks (CLIP)": {"pre_norm": True, "norm_layer": "layernorm"},
    "no [class], mean of patches": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "no [class], norm after pooling, registers": {"class_token": False, "global_pool": "avg", "reg_tokens": 1},
    "attention pooling (SigLIP)": {"class_token": False, "global_pool": "map"},
    "no qkv bias": {"qkv_bias": False},
    "no positions": {"pos_embed": "none"},
    "no projection bias": {"proj_bias": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_folder_of_timm_gives_timms_outputs(tmp_path: Path, variant: str) -> None:
    model = timm_folder(tmp_path, *IMAGENET, **VARIANTS[variant])
    ours = load_backbone(f"timm:{tmp_path}")
    assert_same(ours, model.forward_features(as_theirs(*IMAGENET)), model.num_reg_tokens)
    ours.save_pretrained(tmp_path / "ours")  # and what is saved is the same
    again = load_backbone(str(tmp_path / "ours"))
    assert torch.equal(again(PIXELS / 127.5 - 1), ours(PIXELS / 127.5 - 1))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "qk-norm": ({"qk_norm": True}, "a norm of queries and keys"),
    "norms inside": ({"scale_attn_norm": True}, "norms inside attention or MLP"),
    "activation": ({"act_layer": "quick_gelu"}, "its activation is QuickGELU"),
    "norms": ({"norm_layer": "rmsnorm"}, "its norms are R"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_our_vit_does_not_have_is_refused_by_name(tmp_path: Path, what: str) -> None:
    options, says = REFUSED[what]
    timm_folder(tmp_path, *IMAGENET, **options)
    with pytest.raises(UserError, match=says) as told:
        load_backbone(f"timm:{tmp_path}")
    assert str(tmp_path) in one_line(told)


TRANSFORMERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ViTModel": (transformers.ViTModel, transformers.ViTConfig, {}),
    "ViTForImageClassification": (transformers.ViTForImageClassification, transformers.ViTConfig, {"qkv_bias": False}),
    "ViTMAEModel": (transformers.ViTMAEModel, transformers.ViTMAEConfig, {"mask_ratio": 0.0}),
    "ViTMAEForPreTraining": (transformers.ViTMAEForPreTraining, transformers.ViTMAEConfig, {"mask_ratio": 0.0}),
    "ViTMSNModel": (transformers.ViTMSNModel, transformers.ViTMSNConfig, {}),
    "IJepaModel": (transformers.IJepaModel, transformers.IJepaConfig, {}),
    "Dinov2Model": (transformers.Dinov2Model, transformers.Dinov2Config, {"mlp_ratio": 2}),
    "Dinov2ForImageClassification": (transformers.Dinov2ForImageClassification, transformers.Dinov2Config, {}),
    "Dinov2WithRegistersModel": (
        transformers.Dinov2WithRegistersModel,
        transformers.Dinov2WithRegistersConfig,
        {"num_register_tokens": 3},
    ),
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
@torch.no_grad()
def test_a_folder_of_transformers_gives_its_outputs(tmp_path: Path, kind: str) -> None:
    model_class, config_class, options = TRANSFORMERS[kind]
    model = model_class(config_class(**HF, **options)).eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    processor(tmp_path, *IMAGENET)
    base = getattr(model, model.base_model_prefix, model)
    more = {"noise": torch.arange(16.0).expand(3, -1)} if "MAE" in kind else {}  # which keeps the patches in order
    tokens = base(as_theirs(*IMAGENET), **more).last_hidden_state
    for init in (f"hf:{tmp_path}", str(tmp_path), str(tmp_path / "model.safetensors")):
        assert_same(load_backbone(init), tokens, options.get("num_register_tokens", 0))


def processor(folder: Path, mean: Any, std: Any, **options: Any) -> None:
    """The file in which transformers keeps what it does to images."""
    says = {"do_normalize": True, "image_mean": mean, "image_std": std, "rescale_factor": 1 / 255} | options
    (folder / "preprocessor_config.json").write_text(json.dumps(says))


@torch.no_grad()
def test_what_transformers_does_to_images_is_taken_over(tmp_path: Path) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**HF)).eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    with pytest.warns(match="no preprocessor_config.json, so images are normalised as is usual for vit"):
        assert_same(load_backbone(f"hf:{tmp_path}"), model(as_theirs(*HALF)).last_hidden_state)
    processor(tmp_path, *HALF, do_normalize=False)
    assert_same(load_backbone(f"hf:{tmp_path}"), model(PIXELS / 255).last_hidden_state)
    processor(tmp_path, *HALF, rescale_factor=1.0)
    assert "does not scale pixels to 0..1" in refused(f"hf:{tmp_path}")


def refused(init: str) -> str:
    with pytest.raises(UserError) as told:
        load_backbone(init)
    assert init in one_line(told)
    return one_line(told)


def test_what_transformers_has_and_our_vit_has_not_is_refused_by_name(tmp_path: Path) -> None:
    gated = transformers.Dinov2Model(transformers.Dinov2Config(**HF, use_swiglu_ffn=True))
    gated.save_pretrained(tmp_path)
    assert "it has a gated MLP (SwiGLU)" in refused(str(tmp_path))
    transformers.ViTModel(transformers.ViTConfig(**HF, hidden_act="relu")).save_pretrained(tmp_path)
    assert "its activation is relu" in refused(str(tmp_path))
    transformers.DeiTModel(transformers.DeiTConfig(**HF)).save_pretrained(tmp_path)
    assert "it is transformers' deit; of its models, these have our shape: vit, vit_mae," in refused(str(tmp_path))
    (tmp_path / "config.json").unlink()
    assert "it has a distillation token" in refused(str(tmp_path / "model.safetensors"))
    transformers.ViTModel(transformers.ViTConfig(**HF)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "there is no model.safetensors; a pickle is converted by `mpp convert --from-pth FILE`" in refused(
        str(tmp_path)
    )


@torch.no_grad()
def test_the_default_weights_of_torchvision_give_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import VisionTransformer, ViT_B_16_Weights

    small = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 24, "mlp_dim": 96}
    model = VisionTransformer(**small).eval()
    randomise(model)
    monkeypatch.setattr(ViT_B_16_Weights, "get_state_dict", lambda self, **options: model.state_dict())
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: VisionTransformer(**small))
    assert_same(load_backbone("torchvision:vit_b_16"), torchvision_tokens(model, as_theirs(*IMAGENET)))
    assert "it has: vit_b_16, vit_b_32" in refused("torchvision:resnet50")


@torch.no_grad()
def test_a_file_in_the_names_of_mae_or_torchvision_is_read(tmp_path: Path) -> None:
    options: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 1, "num_heads": 3}
    model = TimmViT(**options).eval()
    randomise(model)
    decoder = {
        "mask_token": torch.zeros(1),
        "decoder_embed.weight": torch.zeros(1),
        "decoder_pos_embed": torch.zeros(1),
    }
    save_file(model.state_dict() | decoder, tmp_path / "mae.safetensors")
    init = str(tmp_path / "mae.safetensors")
    with pytest.warns(match="read with 3 heads a block, 1e-06 in norms and ImageNet's mean and deviation"):
        assert_same(load_backbone(init), model.forward_features(as_theirs(*IMAGENET)))
    found = load_backbone(init, dropout=0.5)
    assert (found.pos_drop.p, found.img_size, found.num_heads) == (0.5, (32, 32), 3)
    assert digest_of(init)
    theirs = torchvision.models.VisionTransformer(32, 8, 1, 3, 192, 768).eval()
    randomise(theirs)
    save_file(theirs.state_dict(), tmp_path / "torchvision.safetensors")
    assert_same(
        load_backbone(str(tmp_path / "torchvision.safetensors")), torchvision_tokens(theirs, as_theirs(*IMAGENET))
    )
    odd = TimmViT(**options | {"embed_dim": 24})
    save_file(odd.state_dict(), tmp_path / "odd.safetensors")
    assert "how many attention heads a width of 24 has is not known" in refused(str(tmp_path / "odd.safetensors"))
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in swin.items()}, tmp_path / "swin.safetensors")
    assert "relative position biases" in refused(str(tmp_path / "swin.safetensors"))
    twice = {f"{part}.{name}": tensor.clone() for part in "ab" for name, tensor in model.state_dict().items()}
    save_file(twice, tmp_path / "twice.safetensors")
    assert "it has several encoders (a., b.)" in refused(str(tmp_path / "twice.safetensors"))


@pytest.mark.parametrize("form", ["vision_transformer", "big_vision", "big_vision, scanned"])
@torch.no_grad()
def test_an_npz_of_the_vit_authors_gives_what_timm_makes_of_it(tmp_path: Path, form: str) -> None:
    model = TimmViT(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5).eval()
    randomise(model)
    arrays = to_jax(model.state_dict(), heads=3)
    if form != "vision_transformer":
        arrays = {f"params/{in_big_visions_names(name)}": array for name, array in arrays.items()}
    if "scanned" in form:
        blocks = {name.replace("_0/", "/", 1) for name in arrays if "encoderblock_0/" in name}
        both = {name: np.stack([arrays.pop(name.replace("block/", f"block_{i}/")) for i in (0, 1)]) for name in blocks}
        arrays |= both
    np.savez(tmp_path / "ViT.npz", **arrays)
    theirs = TimmViT(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5).eval()
    _load_weights(theirs, str(tmp_path / "ViT.npz"))
    assert torch.equal(theirs.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)
    assert_same(load_backbone(str(tmp_path / "ViT.npz")), theirs.forward_features(as_theirs(*HALF)))


def in_big_visions_names(name: str) -> str:
    for old, new in {"Attention_1": "Attention_0", "LayerNorm_2": "LayerNorm_1", "MlpBlock_3": "MlpBlock_0"}.items():
        name = name.replace(old, new)
    return name.replace("Transformer/posembed_input/pos_embedding", "pos_embedding")


def test_an_npz_that_holds_objects_a_bomb_or_half_a_stem_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, **{"embedding/kernel": np.array([{}], dtype=object)})
    assert "allow_pickle" in refused(str(file))
    np.savez_compressed(file, **{"embedding/kernel": np.zeros(1 << 22)})
    assert "it unpacks to 0.0 GiB, more than 4 times its size" in refused(str(file))
    model = TimmViT(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3)
    np.savez(file, **to_jax(model.state_dict(), heads=3), **{"conv_root/kernel": np.zeros(1)})
    assert "conv_root/kernel is (1,), and a convolution's weights have four axes" in refused(str(file))
    lonely = {"conv_root/kernel": np.zeros((7, 7, 3, 64))}  # a hybrid's ResNet without its stages
    np.savez(file, **to_jax(model.state_dict(), heads=3), **lonely)
    assert "our patches are squares of an image" in refused(str(file))


def test_lies_of_a_folder_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    timm_folder(tmp_path, *IMAGENET)
    config = json.loads((tmp_path / "config.json").read_text())
    for lie, says in {
        "depth": "config.json asks for 1000000000 blocks",
        "pretrained": "this timm knows nothing of pretrained",
        "checkpoint_path": "this timm knows nothing of checkpoint_path",
    }.items():
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": {lie: 10**9}}))
        assert says in refused(str(tmp_path))
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"architecture": "swin_tiny_patch4_window7_224", "model_args": {}})
    )
    assert "SwinTransformer" in refused(str(tmp_path))
    parallel = {"architecture": "vit_base_patch16_xp_224", "model_args": {"embed_dim": 24, "num_heads": 3, "depth": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config | parallel))
    assert "its block is ParallelScalingBlock, and that of our ViT is Block" in refused(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    weights["norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "norm.weight holds values that are not finite" in refused(str(tmp_path))
