"""The package, as Python and a shell see it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import mpp
from mpp.config import Pretrain
from mpp.config.command_line import parse
from mpp.errors import UserError
from mpp.models.backbones import build_vit
from tests.helpers import ROOT


def console(*words: str) -> str:
    """What `mpp ...` prints."""
    line = [sys.executable, "-m", "mpp", *words]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_public_names_are_listed_and_there():
    assert set(mpp.__all__) <= set(dir(mpp))
    assert all(getattr(mpp, name) is not None for name in mpp.__all__)
    assert mpp.__version__ == version("masked-patch-pretraining")
    assert (ROOT / "mpp" / "py.typed").exists()


def test_the_console_tells_its_version():
    assert console("--version") == f"mpp {mpp.__version__}\n"


@pytest.mark.parametrize("options", [{"bogus": 1}, {"help": True}, {"h": True}, {"tyro-print-completion": "bash"}])
def test_a_bad_option_in_python_raises_and_does_not_end_the_process(options, monkeypatch):
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(UserError, match=next(iter(options)).replace("-", ".")):
            mpp.pretrain(options)


def test_nano_in_python_is_the_command_lines():
    theirs, ours = build_vit(parse(Pretrain, []).model), mpp.ViT("nano")
    assert theirs.hub_config() == ours.hub_config() | {"pixel_range": None} | {
        name: value for name, value in theirs.hub_config().items() if name not in ours.hub_config()
    }
    assert (ours.img_size, ours.patch_size, ours.pos_init) == ((32, 32), 4, "sincos")
    assert (mpp.ViT("Ti", depth=1).img_size, mpp.ViT("Ti", depth=1).patch_size) == ((224, 224), 16)


def test_weights_are_loaded_from_a_runs_folder(tmp_path):
    vit = mpp.ViT("nano", embed_dim=32, depth=1, num_heads=2)
    vit.save_pretrained(tmp_path / "backbone")
    mpp.Classifier(vit, ["a", "b"]).save_pretrained(tmp_path / "classifier")
    assert mpp.ViT.from_pretrained(tmp_path).embed_dim == 32
    assert mpp.Classifier.from_pretrained(str(tmp_path)).classes == ["a", "b"]


def test_a_shell_completes_commands_and_options():
    script = console("completion", "bash")
    for words, number, found in (
        ("mpp pret", 1, "pretrain"),
        ("mpp pretrain --model.var", 2, "--model.variant"),
    ):
        line = f"{script}\nCOMP_WORDS=({words}); COMP_CWORD={number}; _mpp; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == found
