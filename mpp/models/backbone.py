"""What every backbone is to the commands: images -> tokens, whatever computes them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mpp.models.pretrained import Pretrained

if TYPE_CHECKING:
    from typing_extensions import Self


class Backbone(nn.Module, Pretrained):
    """An encoder of images: (B, C, H, W) in -1..1 -> tokens (B, 1 + N, D), one for the whole image in front.

    Attributes:
        img_size: (height, width) of the images in pixels.
        patch_size: pixels a side that a token stands for; the grid has `num_patches` of them, (down, across).
        in_chans: channels of an image; embed_dim: D; depth: layers whose tokens can be had.
        num_heads: attention heads that suit D.
        mean, std: of each channel (C, 1, 1), of pixels in 0..1, by which the model normalises; `normalised` says
            whether they differ from 0.5.
        pixel_range: the values of images that become -1 and 1, as --data.range; None: all of 8 or 16 bits.
        activation_checkpointing: whether the backward pass recomputes activations.
    """

    in_run = "backbone"
    mean: Tensor
    std: Tensor
    img_size: tuple[int, int]
    grid: tuple[int, int]
    patch_size: int
    in_chans: int
    embed_dim: int
    depth: int
    num_heads: int
    normalised: bool
    pixel_range: tuple[float, float] | None
    activation_checkpointing: bool
    _hub_mixin_config: dict[str, Any]  # the arguments of __init__, stored by the mixin

    @property
    def num_patches(self) -> int:
        """N, the patches of an image."""
        return self.grid[0] * self.grid[1]

    @abstractmethod
    def layers(self, images: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        """Tokens (B, 1 + N, D) after layers `numbers` (1..depth). Those of layer `depth` are the output."""

    @abstractmethod
    def resize(self, img_size: int | Sequence[int]) -> Self:
        """Adapt the model to another image size, a multiple of the patch size. Returns self."""

    @abstractmethod
    def hub_config(self) -> dict[str, Any]:
        """The arguments that build this model, for `config.json`."""

    def as_normalised(self, images: Tensor) -> Tensor:
        """Images as the first layer takes them: by the model's own mean and deviation. Raises ValueError if they have
        another size than the model."""
        if tuple(images.shape[-2:]) != self.img_size:
            raise ValueError(
                f"images of {images.shape[-2]}x{images.shape[-1]} do not fit a model for {self.img_size[0]}x"
                f"{self.img_size[1]}; resize({tuple(images.shape[-2:])}) adapts it to them"
            )
        return ((images + 1) / 2 - self.mean) / self.std if self.normalised else images

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> str | None:
        """Write `config.json` and `model.safetensors` to a folder (and to the hub with `push_to_hub=True`)."""
        if kwargs.get("config") is None:  # push_to_hub passes None
            kwargs["config"] = self.hub_config()
        return super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *, img_size: int | Sequence[int] | None = None, **kwargs: Any
    ) -> Self:
        """Load an encoder from a folder or a hub id, at `img_size` if given (position embeddings interpolated)."""
        model = super().from_pretrained(pretrained_model_name_or_path, strict=True, **kwargs)
        return model if img_size is None else model.resize(img_size)

    def _grid_of(self, img_size: tuple[int, int]) -> tuple[int, int]:
        if any(side < 1 or side % self.patch_size for side in img_size):
            raise ValueError(f"img_size {img_size} is not a multiple of patch_size {self.patch_size}")
        return img_size[0] // self.patch_size, img_size[1] // self.patch_size


def pool_tokens(tokens: Tensor, pool: str) -> Tensor:
    """One vector per image: the mean of its patches' tokens or the [class] token. (B, 1 + N, D) -> (B, D)."""
    return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(dim=1)
