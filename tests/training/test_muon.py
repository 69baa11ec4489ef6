"""Muon in batches is torch's Muon."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import Muon

from mpp.training import muon
from mpp.training.muon import BatchedMuon

SHAPES = [(24, 8), (8, 8), (32, 8), (8, 32), (24, 8), (8, 8), (32, 8), (8, 32), (8, 32)]


@pytest.mark.parametrize("together", [1 << 22, 600])  # 600: two (8, 32) at a time
def test_batched_muon_takes_torchs_steps_and_continues_from_its_state(together, monkeypatch):
    monkeypatch.setattr(muon, "_TOGETHER", together)
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=rng) for shape in SHAPES]
    ours, theirs = ([nn.Parameter(each.clone()) for each in start] for _ in range(2))

    def groups(weights):
        return [{"params": weights[:4], "weight_decay": 0.1}, {"params": weights[4:], "weight_decay": 0, "lr": 2e-3}]

    batched = BatchedMuon(groups(ours), lr=3e-3)
    reference = Muon(groups(theirs), lr=3e-3, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(6):
        if step == 3:  # a checkpoint of either is the other's
            states = batched.state_dict(), reference.state_dict()
            batched.load_state_dict(states[1])
            reference.load_state_dict(states[0])
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=rng)
            b.grad = a.grad.clone()
        ours[0].grad = theirs[0].grad = None  # a matrix without a gradient stays as it is
        batched.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # of steps of about 3e-3, in bf16
    assert torch.equal(ours[0], start[0])
