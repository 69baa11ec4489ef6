"""The toolkit from Python, top to bottom, in two minutes: `python recipes/examples.py [FOLDER]`.

Arrays in memory are pretrained on, probed, fine-tuned on and predicted; then come a target and a method of one's own,
and a comparison.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import reduce, repeat
from torch import Tensor, nn

import mpp
from mpp.data.loader import Batch
from mpp.methods.masked_patches import MaskedPatches
from mpp.methods.regressions import Regression

SMALL = {"img_size": 32, "embed_dim": 64, "depth": 3, "num_heads": 2}


class Brightness(Regression):
    """A target of one's own: the mean brightness of a patch, in 0..1, by mean squared error."""

    cells, num_bins, num_outputs = 1, 8, 1  # accuracies compare eighths of the range

    def __init__(self, patch_size: int, bits: int, channels: int) -> None:
        self.patch_size, self.channels = patch_size, channels

    def of(self, images: Tensor) -> Tensor:
        p = self.patch_size
        return reduce(images / 255, "b c (h p) (w q) -> b (h w) 1", "mean", p=p, q=p)  # (B, N, 1)

    def bins(self, targets: Tensor) -> Tensor:
        return (targets * 8).long().clamp(0, 7)  # (B, K, 1)

    def true_pixels(self, targets: Tensor) -> list[Tensor]:
        grey = (targets.clamp(0, 1) * 255).to(torch.uint8)
        return [repeat(grey, "b k 1 -> b k c p q", c=self.channels, p=self.patch_size, q=self.patch_size)]


class TwoViews(MaskedPatches):
    """A method of one's own: as masked patch prediction, but the image and its mirror image predict the same."""

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().training_step(model, batch, step)
        mirrored, _ = super().training_step(model, batch | {"images": batch["images"].flip(-1)}, step)
        return (loss + mirrored) / 2, metrics


def main(args: Sequence[str] | None = None) -> None:
    """Run all examples."""
    words = sys.argv[1:] if args is None else args
    runs = Path(words[0]) if words else Path(tempfile.mkdtemp(prefix="mpp-examples-"))
    scenes, counts = labelled_scenes()
    train, few, test = scenes[:900], slice(0, 300), slice(900, 1000)

    # 1. Pretrain on an array (N, H, W, C); a tensor, a list of pictures or paths, a datasets.Dataset or a torch Dataset
    # would do, too.
    short = {"steps": 40, "batch_size": 32, "log_every": 10}
    options = {"model": SMALL, "train": short, "optim": {"warmup_steps": 10}, "eval": {"every": 40}}
    found = mpp.pretrain(data=train, **options, output=str(runs / "pretrained"))
    print(f"pretrained: {found['eval/bin_accuracy']:.1%} of the corrupted patches, in {found['seconds']} s")

    # 2. Measure frozen features on labels.
    labelled = {"train": (scenes[few], counts[few]), "test": (scenes[test], counts[test])}
    found = mpp.probe(init=str(runs / "pretrained"), data=labelled, output=str(runs / "probed"))
    print(f"frozen features: {found['eval/top1']:.1%} of the test images")

    # 3. Fine-tune, then name what is in new images.
    found = mpp.finetune(
        init=str(runs / "pretrained"),
        data=labelled,
        train={"steps": 40, "batch_size": 32},
        optim={"warmup_steps": 10},
        output=str(runs / "tuned"),
    )
    print(f"fine-tuned: {found['eval/top1']:.1%} of the test images")
    mpp.predict(init=str(runs / "tuned"), data=scenes[test], out=str(runs / "predictions.csv"))
    print((runs / "predictions.csv").read_text().splitlines()[1])

    # 4. The encoder as a PyTorch module.
    vit = mpp.ViT.from_pretrained(str(runs / "pretrained"))
    tokens = vit(torch.zeros(2, 3, 32, 32))
    print(f"tokens: {tuple(tokens.shape)}")

    # 5. A target and a method of one's own, each a class in place of a name.
    mpp.pretrain(data={"path": train, "target": Brightness}, **options, output=str(runs / "own-target"))
    mpp.pretrain(data=train, method=TwoViews, **options, output=str(runs / "own-method"))

    # 6. Compare the runs, frozen and fine-tuned: report.html. A class would do as an arm, too, and be trained here.
    mpp.compare(
        data=labelled,
        arms={"mpp": runs / "pretrained", "mine": runs / "own-method"},
        labels=["100"],
        seeds=[0],
        probe={"shots": [5]},
        probe_labels=100,
        finetune={"train": {"steps": 20}, "optim": {"warmup_steps": 5}},
        output=str(runs / "compared"),
    )
    print(f"everything is in {runs}: tensorboard --logdir {runs}")


def labelled_scenes(count: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Built-in scenes as an array (N, 32, 32, 3) uint8, and the number of shapes in each, less one."""
    images = mpp.load_images("shapes", "train", size=(32, 32), label_column="count")
    return np.stack([np.asarray(image) for image in images.read(range(count))]), images.labels(range(count))


if __name__ == "__main__":
    main()
