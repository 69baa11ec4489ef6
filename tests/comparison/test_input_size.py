"""What backbones cost against the size of their input: recipes/cost.py in small, and its memory beside torch's."""

from __future__ import annotations

import csv
import math

import pytest
import torch

from mpp.config.options import Model
from mpp.errors import UserError
from mpp.models import blocks
from mpp.models.backbones import build_vit
from mpp.training import cost
from mpp.training.cost import largest_that, peaks_of, seconds_in_turns
from recipes.cost import main
from tests.helpers import one_line, reset_accelerate

BACKBONES = ["nano depth=1 embed_dim=16 num_heads=1", "nano depth=2 embed_dim=16 num_heads=1 patch_size=8"]


def test_every_backbone_and_size_is_measured_once_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost, "peaks_of", lambda model, train, precision: [(2, 1 << 20), (4, 3 << 20)])
    words = ["--backbones", *BACKBONES, "--rounds", "2", "--batch-size", "2", "--memory", "0.125"]
    words += ["--output", str(tmp_path)]
    reset_accelerate()
    main([*words, "--sizes", "16"])
    first = (tmp_path / "cost.csv").read_text()
    main([*words, "--sizes", "16", "32"])
    assert (tmp_path / "cost.csv").read_text().startswith(first), "what is measured is kept"
    with (tmp_path / "cost.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["img_size"], row["mode"], row["backbone"]) for row in rows] == [
        (size, mode, name) for size in ("16", "32") for mode in ("inference", "training") for name in BACKBONES
    ]
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    assert {row["largest_batch"] for row in rows} == {"129"}, "128 MiB = -1 MiB + 129 images of 1 MiB"
    page = (tmp_path / "cost.md").read_text()
    assert "extrapolated on a line through the peak memory of two batches" in page
    assert all(page.count(f"| {name} |") == 2 for name in BACKBONES)
    assert (tmp_path / "speed.png").stat().st_size > 5000
    assert (tmp_path / "batch.png").stat().st_size > 5000
    capsys.readouterr()
    main([*words, "--sizes", "16", "--dry-run"])
    assert "about 0.00 s for what --output does not hold yet" in capsys.readouterr().out.replace("0 ms", "0.00 s")
    with pytest.raises(UserError, match="holds what was measured on the CPU"):
        main([*words, "--sizes", "16", "--memory", "1"])


def test_the_memory_of_a_step_is_at_least_what_autograd_keeps(monkeypatch):
    monkeypatch.setattr(blocks, "MANY_ON_A_CPU", 0)  # as in large batches
    model = Model(embed_dim=64, depth=4, num_heads=2)
    kept: dict[int, int] = {}
    vit = build_vit(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in vit.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        vit(torch.randn(8, 3, 32, 32)).mean().backward()
    (less, low), (more, high) = peaks_of(model, True, "no")
    slope = (high - low) / (more - less)
    assert 0.8 * sum(kept.values()) / 8 < slope < 2 * sum(kept.values()) / 8


@pytest.mark.parametrize("most", [0, 1, 2, 7, 100, 1000, 40_000])
def test_the_largest_batch_is_found_to_a_sixteenth(most):
    found = largest_that(lambda batch: batch <= most)
    assert most - most // 16 - 1 <= found <= most
    assert largest_that(lambda batch: True, most=64) == 64


def test_backbones_take_turns():
    order: list[str] = []
    found = seconds_in_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2)
    turns = [name for k, name in enumerate(order) if k == 0 or order[k - 1] != name]
    assert turns == ["a", "b", "a", "b", "a", "b"], "both warm up, then two rounds"
    assert all(len(each) == 2 and all(map(math.isfinite, each)) for each in found.values())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--backbones", "huge"], "--backbones 'huge' at 16 pixels: invalid choice"),
        (["--backbones", "nano patch_size=5"], "--backbones nano patch_size=5: --model.img-size 16 is not a multiple"),
        (["--backbones", "nano depth"], "must be OPTION=VALUE"),
        (["--rounds", "0"], "--rounds 0 must be above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(words, says, tmp_path):
    with pytest.raises(UserError) as error:
        main(["--sizes", "16", "--output", str(tmp_path / "none"), *words])
    assert says in one_line(error)
    assert not (tmp_path / "none").exists()
