"""A backbone and a classifier leave torch with any batch size: by `torch.export`, and as ONNX."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mpp import Classifier, ViT

TINY = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
BATCH = {"images": {0: torch.export.Dim("batch")}}


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    found: dict[str, nn.Module] = {kind: ViT(**TINY, pos_embed=kind) for kind in ("1d", "2d", "relative", "none")}
    for pool in ("mean", "cls"):
        found[f"classifier, {pool}"] = Classifier(ViT(**TINY), ["a", "b", "c"], pool, "mlp", temperature=2.0)
    for model in found.values():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return {name: model.eval() for name, model in found.items()}


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 12, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("name", models())
@torch.no_grad()
def test_an_exported_model_takes_any_batch_size(name: str) -> None:
    model = models()[name]
    exported = torch.export.export(model, (images(2),), dynamic_shapes=BATCH).module()
    for batch in (1, 2, 5):
        assert_close(exported(images(batch)), model(images(batch)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["relative", "classifier, mean"])
@torch.no_grad()
def test_a_model_in_onnx_takes_any_batch_size(tmp_path: Path, name: str) -> None:
    model, file = models()[name], tmp_path / "model.onnx"
    torch.onnx.export(model, (images(2),), file, dynamo=True, dynamic_shapes=BATCH, verbose=False)
    session = onnxruntime.InferenceSession(file)
    for batch in (1, 2, 5):
        (found,) = session.run(None, {session.get_inputs()[0].name: images(batch).numpy()})
        assert_close(torch.from_numpy(found), model(images(batch)), rtol=1e-4, atol=1e-5)
