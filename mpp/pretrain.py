"""Pretrain a Vision Transformer by masked patch prediction: `accelerate launch mpp/pretrain.py --help`."""

from __future__ import annotations

from mpp.config.checks import check
from mpp.config.command_line import parse
from mpp.config.commands import Pretrain
from mpp.run.command import run_command


def main(args: list[str] | None = None) -> dict[str, float]:
    """Run the command; returns the last evaluation's metrics."""
    config = parse(Pretrain, args)
    check(config)

    from mpp.commands.pretrain import run_pretraining
    from mpp.run.machine import start_accelerator  # heavy imports come after --help and the checks

    accelerator = start_accelerator(config.train.precision)
    outcome = run_pretraining(config, accelerator)
    accelerator.end_training()
    return outcome.metrics


if __name__ == "__main__":
    run_command(main)
