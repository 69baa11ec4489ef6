"""What a run says while it trains."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor


def mean_over_group(accelerator: Accelerator, parts: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means of a step's metrics over its micro-batches and all processes: one transfer for all of them."""
    names = list(parts[0])
    values = torch.stack([torch.stack([part[name].float() for name in names]) for part in parts]).mean(0)
    return dict(zip(names, accelerator.reduce(values, "mean").tolist(), strict=True))


def summary_line(step: int, steps: int, metrics: dict[str, float]) -> str:
    """An evaluation in one line for the terminal."""
    return f"step {step}/{steps}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
