"""What the benchmark measures a training step of: ours, other libraries' masked image modelling, and a floor.

All have the same images, encoder, optimiser, precision and batch. A library is imported when its contender is built.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mpp.config.options import Visible
from mpp.data.augment import normalise
from mpp.data.loader import Draws
from mpp.data.randomness import Numbers, Purpose
from mpp.methods.corrupt import Corruption, CorruptionDraws
from mpp.methods.masked_patches import MaskedPatchModel
from mpp.methods.targets import Target, make_target
from mpp.methods.visible_patches import Hiding, HidingDraws, VisiblePatchModel
from mpp.models.vit import VARIANTS, ViT

Step = Callable[[], None]
Variant = Literal["nano", "Ti", "S", "B", "L"]
Contender = Literal[
    "ours",
    "vit-pytorch MPP",
    "transformers MIM",
    "timm ViT, no head",
    "ours visible",
    "ours visible, as MAE",
    "vit-pytorch MAE",
    "transformers MAE",
]
OURS, VISIBLE, AS_MAE, FLOOR = "ours", "ours visible", "ours visible, as MAE", "timm ViT, no head"
PEERS = ("vit-pytorch MPP", "transformers MIM")  # corrupted patches among the others, as in ours
MAE_PEERS = ("vit-pytorch MAE", "transformers MAE")
_DEPTH, _HEAD = 2, 32  # of MAE's decoder: blocks, width of a head; it is as wide as the encoder, at most 512


@dataclass(frozen=True)
class Setting:
    """What all contenders have in common."""

    variant: Variant
    img_size: int
    patch_size: int
    batch_size: int
    precision: str
    device: torch.device
    compiled: bool = False

    @property
    def size(self) -> dict[str, int]:
        """embed_dim, depth and num_heads of the encoder."""
        return VARIANTS[self.variant]

    def images(self) -> Tensor:
        """Random images, uint8 (B, 3, H, W), the same for all contenders."""
        shape = (self.batch_size, 3, self.img_size, self.img_size)
        rng = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8).to(self.device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def build(name: str, setting: Setting) -> Step:
    """A contender's training step. Raises ImportError if its library is not installed."""
    return _BUILDERS[name](setting)


@dataclass(frozen=True)
class Method:
    """One of our methods, as a training has it."""

    model: MaskedPatchModel | VisiblePatchModel
    target: Target
    draw: Draws
    form: Callable[..., Any]  # what the model takes: of the drawn tensors
    predicted: str  # the drawn tensor that says which patches are predicted
    flops: int  # of training on an image


def our_method(name: str, setting: Setting) -> Method:
    """`ours` is the paper's, `ours visible` --method visible with the preset's target, both with their defaults;
    `ours visible, as MAE` predicts the pixels of all hidden patches with MAE's decoder."""
    p = setting.patch_size
    vit = ViT(setting.variant, img_size=setting.img_size, patch_size=p)
    if name == OURS:
        target = make_target("mean-colour", p)
        masked = MaskedPatchModel(vit, target.num_outputs)
        draw = CorruptionDraws(vit.grid, 0.5, (0.8, 0.1, 0.1), "uniform")
        return Method(masked, target, draw, Corruption, "indices", masked.flops_an_image())
    options = Visible(predict=1.0, decoder="self", depth=_DEPTH) if name == AS_MAE else Visible()
    target = make_target("pixels" if name == AS_MAE else "hog+0.1*pixels", p)
    model = VisiblePatchModel(vit, target.num_outputs, options)
    hide = HidingDraws(vit.grid, options.keep, options.predict, "uniform")
    return Method(model, target, hide, Hiding, "predicted", model.flops_an_image(options.keep, options.predict))


def _ours(name: str, setting: Setting) -> Step:
    """Targets and normalisation are computed on the device, in every step."""
    method, device = our_method(name, setting), setting.device
    model: nn.Module = method.model.to(device)
    if setting.compiled:
        model.compile()
    images = setting.images()
    rows = torch.arange(len(images), device=device)[:, None]
    draws = _draws_of_steps(method.draw, len(images), pinned=device.type == "cuda")

    def loss() -> Tensor:
        drawn = {name: part.to(device, non_blocking=True) for name, part in next(draws).items()}
        predictions = model(normalise(images), method.form(**drawn))
        return method.target.loss(predictions, method.target.of(images)[rows, drawn[method.predicted]])

    return _training_step(setting, model, loss)


def _draws_of_steps(draw: Draws, batch_size: int, pinned: bool) -> Iterator[dict[str, Tensor]]:
    """The draws of each step; for a GPU drawn in advance into pinned memory, as the loader's processes do."""
    steps = range(8) if pinned else itertools.count()
    drawn = (draw(Numbers(0, Purpose.TRAIN, step, range(batch_size))) for step in steps)
    if not pinned:
        return drawn
    return itertools.cycle([{name: part.pin_memory() for name, part in each.items()} for each in drawn])


def _vit_pytorch(setting: Setting) -> Any:
    """lucidrains' ViT. As released, its [class] token and position embeddings lack the leading axis that MPP and MAE
    of the same release ask for; we add it."""
    from vit_pytorch import ViT

    dim, heads = setting.size["embed_dim"], setting.size["num_heads"]
    vit = ViT(
        image_size=setting.img_size,
        patch_size=setting.patch_size,
        num_classes=1,
        dim=dim,
        depth=setting.size["depth"],
        heads=heads,
        dim_head=dim // heads,
        mlp_dim=4 * dim,
    )
    if vit.cls_token.ndim == 2:
        vit.cls_token = nn.Parameter(vit.cls_token.data[None])
        vit.pos_embedding = nn.Parameter(vit.pos_embedding.data[None])
    return vit


def _vit_pytorch_mpp(setting: Setting) -> Step:
    """lucidrains' MPP. Its targets need images in 0..1."""
    from vit_pytorch.mpp import MPP

    vit, dim = _vit_pytorch(setting), setting.size["embed_dim"]
    model = MPP(vit, patch_size=setting.patch_size, dim=dim, mask_prob=0.5, replace_prob=0.8, random_patch_prob=0.1)
    model.to(setting.device)
    run = torch.compile(model) if setting.compiled else model
    images = setting.images()
    return _training_step(setting, model, lambda: run(images.float() / 255))


def _vit_pytorch_mae(setting: Setting) -> Step:
    """lucidrains' MAE: no [class] token; the loss is of the pixels of the hidden patches."""
    from vit_pytorch.mae import MAE

    width = min(512, setting.size["embed_dim"])
    model = MAE(
        encoder=_vit_pytorch(setting),
        decoder_dim=width,
        masking_ratio=0.75,
        decoder_depth=_DEPTH,
        decoder_heads=width // _HEAD,
        decoder_dim_head=_HEAD,
    ).to(setting.device)
    run = torch.compile(model) if setting.compiled else model
    images = setting.images()
    return _training_step(setting, model, lambda: run(normalise(images)))


def _transformers(setting: Setting) -> dict[str, Any]:
    dim = setting.size["embed_dim"]
    return {
        "hidden_size": dim,
        "num_hidden_layers": setting.size["depth"],
        "num_attention_heads": setting.size["num_heads"],
        "intermediate_size": 4 * dim,
        "image_size": setting.img_size,
        "patch_size": setting.patch_size,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _transformers_mim(setting: Setting) -> Step:
    """transformers' masked image modelling (SimMIM): reconstruction of masked pixels."""
    from transformers import ViTConfig, ViTForMaskedImageModeling

    model: Any = ViTForMaskedImageModeling(ViTConfig(**_transformers(setting), encoder_stride=setting.patch_size))
    model.to(setting.device)
    run = torch.compile(model) if setting.compiled else model
    images = setting.images()
    patches = (setting.img_size // setting.patch_size) ** 2
    mask = torch.rand(len(images), patches, device=setting.device).argsort(1) < patches // 2
    return _training_step(setting, model, lambda: run(normalise(images), bool_masked_pos=mask).loss)


def _transformers_mae(setting: Setting) -> Step:
    """transformers' MAE: the decoder and its head run on all patches, the loss is of the hidden ones' pixels."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    width = min(512, setting.size["embed_dim"])
    model: Any = ViTMAEForPreTraining(
        ViTMAEConfig(
            **_transformers(setting),
            mask_ratio=0.75,
            norm_pix_loss=False,
            decoder_hidden_size=width,
            decoder_num_hidden_layers=_DEPTH,
            decoder_num_attention_heads=width // _HEAD,
            decoder_intermediate_size=4 * width,
        )
    )
    model.to(setting.device)
    run = torch.compile(model) if setting.compiled else model
    images = setting.images()
    return _training_step(setting, model, lambda: run(normalise(images)).loss)


def _timm(setting: Setting) -> Step:
    """The floor: forward and backward of timm's ViT; the loss is the sum of its tokens."""
    import timm

    size: dict[str, Any] = setting.size
    model = timm.models.VisionTransformer(setting.img_size, setting.patch_size, num_classes=0, **size)
    model.to(setting.device)
    run = torch.compile(model.forward_features) if setting.compiled else model.forward_features
    images = normalise(setting.images())

    def step() -> None:
        with setting.autocast():
            tokens = run(images)
        tokens.sum().backward()
        model.zero_grad()

    return step


def _training_step(setting: Setting, model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """Forward, backward and optimiser step; every contender has the same fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with setting.autocast():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


_BUILDERS: dict[str, Callable[[Setting], Step]] = {
    **{name: partial(_ours, name) for name in (OURS, VISIBLE, AS_MAE)},
    PEERS[0]: _vit_pytorch_mpp,
    PEERS[1]: _transformers_mim,
    MAE_PEERS[0]: _vit_pytorch_mae,
    MAE_PEERS[1]: _transformers_mae,
    FLOOR: _timm,
}
assert set(_BUILDERS) == set(get_args(Contender))
