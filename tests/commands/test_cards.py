"""Model cards: what a run says of its weights, and that they go to the hub together. No network."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard, hub_mixin

import mpp
from mpp.commands.cards import card_of
from mpp.data.sources.shapes import SPLITS
from mpp.errors import UserError
from mpp.training.flops import flops_an_image
from recipes.finetune import main as finetune
from tests.helpers import pretrain, reset_accelerate


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished pretraining, in its folder."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    pretrain(folder, "--data.target", "2x2")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that is a folder: what is uploaded lies in it by its name."""

    def upload_folder(*, repo_id, folder_path, **options):
        shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
        return f"https://hub/{repo_id}/commit/1"

    api = SimpleNamespace(
        create_repo=lambda repo_id, **options: SimpleNamespace(repo_id=repo_id), upload_folder=upload_folder
    )
    monkeypatch.setattr(hub_mixin, "HfApi", lambda **options: api)
    return tmp_path / "hub"


def test_the_card_of_a_run_says_how_it_was_made_and_what_it_measured(run):
    card = ModelCard.load(run / "backbone" / "README.md")
    result = json.loads((run / "result.json").read_text())
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "masked-patch-pretraining")
    assert card.data.pipeline_tag == "image-feature-extraction"
    for said in (
        "# ViT nano/4 at 16 x 16, pretrained by masked patch prediction, without labels",
        "| images | shapes: 100,000 to train on |",
        f"`{result['data']['train']}`",
        "`--method mpp --data.target 2x2`",
        "| steps | 6 of 8 images: 48 in all |",
        f"{result['flops']:.3g} floating-point operations in",
        f"| accuracy of guessing the commonest bin | {result['eval/baseline_majority']:.1%} |",
        "on 20 images",
        "`mpp convert FOLDER --to timm DIR`",
    ):
        assert said in card.text
    code = card.text.split("```python")[1].split("```")[0].replace("FOLDER", str(run / "backbone"))
    names: dict = {}
    exec(code, names)  # what a reader copies
    assert names["features"].shape == (1, 32)


def test_the_arithmetic_is_that_of_all_images(run):
    result = json.loads((run / "result.json").read_text())
    assert result["flops"] % 48 == 0
    encoder = mpp.Classifier(mpp.ViT.from_pretrained(run / "backbone"), ["a"])
    assert 0.5 < result["flops"] / 48 / flops_an_image(encoder) < 2


def test_a_model_goes_to_the_hub_with_its_card_and_comes_back(run, hub):
    address = mpp.push_to_hub(str(run), "me/mine", private=True)
    assert address == "https://hub/me/mine/commit/1"
    there = hub / "me" / "mine"
    assert sorted(path.name for path in there.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert ModelCard.load(there / "README.md").text == ModelCard.load(run / "backbone" / "README.md").text
    back, mine = mpp.ViT.from_pretrained(there), mpp.ViT.from_pretrained(run / "backbone")
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in mine.state_dict().items())
    with pytest.raises(UserError, match="has neither classifier/"):
        mpp.push_to_hub(str(run), "me/mine", kind="classifier")


def test_a_model_without_a_run_has_a_card_that_loads_it(hub):
    mpp.ViT("nano", img_size=8, patch_size=4, embed_dim=32, depth=1, num_heads=2).push_to_hub("me/fresh")
    card = ModelCard.load(hub / "me" / "fresh" / "README.md")
    assert 'ViT.from_pretrained("FOLDER_OR_HUB_ID")' in card.text
    assert "vision-transformer" in card.data.tags


def test_the_card_of_a_classifier_loads_it_and_names_what_it_began_as(run, tmp_path, monkeypatch):
    monkeypatch.setitem(SPLITS, "test", 40)
    reset_accelerate()
    options = ["--init", str(run), "--data.labels", "16", "--train.steps", "2", "--train.batch-size", "8"]
    finetune([*options, "--optim.warmup-steps", "1", "--output", str(tmp_path / "fine")])
    text = (tmp_path / "fine" / "classifier" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in text
    assert "| began as | mine, weights `sha256:" in text
    assert str(tmp_path) not in text
    names: dict = {}
    exec(text.split("```python")[1].split("```")[0].replace("FOLDER", str(tmp_path / "fine" / "classifier")), names)
    assert names["scores"].shape == (1, 8)
    assert "encoder of a run" in (tmp_path / "fine" / "backbone" / "README.md").read_text()


def test_a_name_in_a_card_begins_no_cell_link_or_page(run):
    model = json.loads((run / "backbone" / "config.json").read_text())
    result = json.loads((run / "result.json").read_text())
    options = {"data.path": "/home/me/a|b[x]<b>\n#", "optim.name": "muon", "optim.lr": 1.0, "train.batch_size": 8}
    text = card_of("backbone", model, options, result)
    assert r"| images | a\|b\[x\]&lt;b&gt;\\n#: 100,000 to train on |" in text
    assert "/home/me" not in text
