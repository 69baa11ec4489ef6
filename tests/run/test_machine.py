"""The machine: threads, as the environment asks for them."""

from __future__ import annotations

import pytest

from mpp.run import machine


@pytest.mark.parametrize(
    ("asked", "all_cores"),
    [
        (None, True),
        ("1", True),
        ("1,4", True),
        (" 1 ", True),
        ("", True),
        ("2,1", False),
        ("4", False),
        ("many", False),
    ],
)
def test_threads_are_those_asked_for_or_all_cores(monkeypatch, asked, all_cores):
    set_to = []
    monkeypatch.setattr("torch.set_num_threads", set_to.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    machine.use_all_cores()
    assert set_to == ([machine.cores_a_process()] if all_cores else [])
