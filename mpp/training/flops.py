"""How much arithmetic training takes, and how much of it a device could do at best."""

from __future__ import annotations

import copy
import math
import time
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def flops_an_image(model: nn.Module, *inputs: Any) -> int:
    """Floating-point operations of training on one image, forward and backward (a multiplication and an addition are
    two). `inputs` are what the model takes beside an image, on the device "meta". Counted without computing anything.
    """
    bare: Any = copy.deepcopy(model).to("meta")
    bare.vit.activation_checkpointing = False  # what is computed again is no progress
    images = torch.empty(1, bare.vit.in_chans, *bare.vit.img_size, device="meta")
    with FlopCounterMode(display=False) as counter:
        bare(images, *inputs).sum().backward()
    return counter.get_total_flops()


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large product of matrices: what this device does at best in this process. Takes half a second."""
    size = 8192 if device.type == "cuda" else 512
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    best, until = math.inf, time.perf_counter() + 0.5
    while best == math.inf or time.perf_counter() < until:
        _settle(a)
        started = time.perf_counter()
        product = a @ b
        _settle(product)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _settle(tensor: Tensor) -> None:
    """Wait until a tensor is there."""
    tensor[0, 0].item()
