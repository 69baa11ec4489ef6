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


@pytest.mark.parametrize(
    ("units", "precision", "hint"),
    [
        ({"amx_bf16": True}, "fp32", "precision bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "fp32", "precision bf16"),
        ({"avx512_bf16": True}, "bf16", None),
        ({"avx512_bf16": False}, "fp32", None),
        ({}, "bf16", "precision fp32"),
    ],
)
def test_a_cpu_says_which_precision_it_is_faster_in(monkeypatch, capsys, units, precision, hint):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: units)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    accelerator = machine.start_accelerator(precision)
    machine.let_go(accelerator)
    said = capsys.readouterr().out
    assert (f"this CPU is faster in {hint.split()[1]}: {hint}" in said) if hint else ("faster" not in said)
