"""What is on the hub and what is here; a revision is pinned. There is no network: the hub is a stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from mpp import ViT
from mpp.config.command_line import write_toml
from mpp.config.commands import Compare, FineTune, LinearProbe, Pretrain
from mpp.config.hub import OnHub, on_hub, pinned
from mpp.config.presets import read_toml
from mpp.data.sources.path import source_of
from mpp.errors import UserError
from mpp.models.backbones import load_backbone
from tests.helpers import one_line

COMMIT, LATER = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.fixture
def hub(monkeypatch):
    """A hub whose repositories are at COMMIT; what it was asked is kept."""
    asked: list[tuple[str, str]] = []
    now = SimpleNamespace(sha=COMMIT, asked=asked)

    class Api:
        def model_info(self, repo):
            asked.append(("model", repo))
            return now

        def dataset_info(self, repo):
            asked.append(("dataset", repo))
            return now

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return now


@pytest.mark.parametrize(
    "name",
    [
        "./x",
        "../x/y",
        "/x/y",
        "~/x",
        "runs/x",
        "a/b/c",
        "photos",
        "org/x.safetensors",
        "org/x.parquet",
        "a b/c",
        "x\\y",
    ],
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(tmp_path, monkeypatch, hub, name):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for missing in (lambda: load_backbone(name), lambda: source_of(name)):
        with pytest.raises(UserError) as told:
            missing()
        assert f"{name} does not exist (on the hub: hf://owner/name)" in one_line(told)
    assert pinned(FineTune(init=name)).init == name
    assert not hub.asked


def test_names_on_the_hub():
    assert on_hub("hf://owner/name", "--init") == OnHub("owner/name")
    assert on_hub("hf://owner/name@v1.0", "--init") == OnHub("owner/name", "v1.0")
    assert on_hub("hf://mnist", "--data.path") == OnHub("mnist")
    assert on_hub("owner/vit-b-1.5", "--init") == OnHub("owner/vit-b-1.5")
    for odd in ("hf://", "hf://a/b/c", "hf://../x", "hf://owner/name@", "hf://a/b c"):
        with pytest.raises(UserError, match="is no name on the hub: hf://owner/name"):
            on_hub(odd, "--init")


def test_names_of_libraries_are_folders_or_names_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for folder in ("hf:mine", "hf:./mine", "hf:mine/x", f"hf:{tmp_path}", "timm:mine", "timm:~/x"):
        assert on_hub(folder, "--init") is None
    assert on_hub("hf:google/vit@main", "--init") == OnHub("google/vit", "main")
    assert on_hub("timm:vit_base_patch16_224.mae", "--init") == OnHub("timm/vit_base_patch16_224.mae")
    assert on_hub("timm:vit_tiny_patch16_224", "--init") == OnHub("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    with pytest.raises(UserError, match="timm has no weights of that name"):
        on_hub("timm:vit_of_nobody", "--init")


def test_every_name_is_pinned_to_a_commit_once(hub, tmp_path):
    config = Compare(mpp="o/mpp", supervised="none", others=("x=o/x", "y=/tmp/y"), output=str(tmp_path))
    config.data.path, config.pretrain.eval.probe = "hf://o/set", "o/probe"
    found = pinned(config)
    assert found.mpp == f"hf://o/mpp@{COMMIT}"
    assert (found.supervised, found.others) == ("none", (f"x=hf://o/x@{COMMIT}", "y=/tmp/y"))
    assert found.data.path == f"hf://o/set@{COMMIT}"
    assert found.pretrain.eval.probe == f"hf://o/probe@{COMMIT}"
    assert config.mpp == "o/mpp"  # the user's options stay
    assert sorted(hub.asked) == [("dataset", "o/probe"), ("dataset", "o/set"), ("model", "o/mpp"), ("model", "o/x")]
    write_toml(found, tmp_path / "config.toml")
    assert read_toml(tmp_path / "config.toml")["mpp"] == f"hf://o/mpp@{COMMIT}"
    hub.sha = LATER  # the repository has moved on: what was begun goes on with what it began with
    assert pinned(config) == found
    config.mpp = "hf://o/mpp@main"
    assert pinned(config).mpp == "hf://o/mpp@main"
    config.mpp = "o/other"
    assert pinned(config).mpp == f"hf://o/other@{LATER}"


def test_the_pinned_revision_is_what_is_loaded(monkeypatch, backbone):
    asked = []

    def download(repo_id: str, filename: str, revision: str | None = None, **_: object) -> str:
        asked.append((repo_id, filename, revision))
        return str(Path(backbone, filename))

    for place in ("mpp.models.pretrained", "huggingface_hub.hub_mixin"):
        monkeypatch.setattr(f"{place}.hf_hub_download", download)
    assert isinstance(load_backbone(f"hf://o/n@{COMMIT}"), ViT)
    assert asked == [("o/n", "config.json", COMMIT), ("o/n", "model.safetensors", COMMIT)]


def test_weights_of_another_library_on_the_hub_are_fetched_at_their_revision(monkeypatch, tmp_path):
    import timm
    from huggingface_hub.errors import EntryNotFoundError
    from safetensors.torch import save_file

    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3}
    save_file(timm.create_model("vit_tiny_patch16_224", **sizes).state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_features": 24, "model_args": sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = []

    def fetch(repo, name, revision=None):
        asked.append((repo, name, revision))
        if not (tmp_path / name).exists():
            raise EntryNotFoundError(f"no {name}", response=SimpleNamespace(headers={}, request=None))
        return str(tmp_path / name)

    monkeypatch.setattr("mpp.models.foreign.sources.hf_hub_download", fetch)
    for init in (f"hf://o/n@{COMMIT}", f"hf:o/n@{COMMIT}"):
        assert load_backbone(init).img_size == (16, 16)
    files = ("config.json", "model.safetensors", "preprocessor_config.json")
    assert asked == 2 * [("o/n", name, COMMIT) for name in files]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"hf://o/n: it has no model\.safetensors"):
        load_backbone("hf:o/n")


def test_the_pinned_revision_of_a_set_is_what_is_read(monkeypatch):
    builders = []
    stand_in = SimpleNamespace(base_path="hf://datasets/o/n@x", config=SimpleNamespace(data_files={}))
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *a, **k: builders.append((a, k)) or stand_in)
    assert source_of(f"hf://o/n@{COMMIT}") == ("o/n", {"revision": COMMIT})
    assert source_of("o/n", "small") == ("o/n", {"name": "small"})
    assert builders[0][1]["revision"] == COMMIT


def test_a_hub_that_cannot_be_asked_is_said():
    with pytest.raises(UserError) as told:
        pinned(LinearProbe(init="hf://nobody/nothing"))
    assert "--init nobody/nothing: no backbone could be loaded from it (there is no such folder" in one_line(told)
    config = Pretrain()
    config.data.path = "nobody/nothing"
    with pytest.warns(UserWarning, match="cannot be asked for its revision .* so it is not pinned"):
        assert pinned(config).data.path == "nobody/nothing"
