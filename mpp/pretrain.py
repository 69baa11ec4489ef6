"""Pretrain a Vision Transformer by masked patch prediction: `accelerate launch mpp/pretrain.py --help`."""

from __future__ import annotations

from mpp.checks import check_pretrain
from mpp.config import Pretrain, parse
from mpp.errors import run_command


def main(args: list[str] | None = None) -> dict[str, float]:
    """Run the command; returns the last evaluation's metrics."""
    config = parse(Pretrain, args)
    check_pretrain(config)

    from mpp.machine import start_accelerator  # heavy imports come after --help and the checks
    from mpp.pretrain_job import run_pretraining

    accelerator = start_accelerator(config.train.precision)
    outcome = run_pretraining(config, accelerator)
    accelerator.end_training()
    return outcome.metrics


if __name__ == "__main__":
    run_command(main)
