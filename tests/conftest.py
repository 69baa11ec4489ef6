"""What all tests share: no network, and a cache of `datasets` that is thrown away."""

from __future__ import annotations

import os
import tempfile

import pytest

_CACHE = tempfile.TemporaryDirectory(prefix="mpp-tests-", ignore_cleanup_errors=True)

# Before any test file is imported, because `datasets` reads these once, and torch the first, which makes the tests the
# same on a machine with GPUs: on the CPU, in fp32, to the last bit. Test files run side by side. A thread that waits is
# to sleep, because threads that spin for a core slow each other twenty-fold.
os.environ |= {
    "OMP_WAIT_POLICY": "passive",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HOME": _CACHE.name,
    "HF_DATASETS_CACHE": f"{_CACHE.name}/datasets",
    "MPP_CACHE": f"{_CACHE.name}/mpp",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


@pytest.fixture(scope="session", autouse=True)
def throwaway_cache():
    """Remove the cache of `datasets` after the last test."""
    yield _CACHE.name
    _CACHE.cleanup()


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """An exported backbone of random weights, for images of 16 x 16."""
    import torch

    from mpp import ViT

    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    ViT("nano", img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2).save_pretrained(folder)
    return folder
