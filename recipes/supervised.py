"""Pretrain on labelled images, for comparison: `accelerate launch recipes/supervised.py --help`."""

from __future__ import annotations

from typing import Any

from mpp.config.checks import check
from mpp.config.command_line import parse
from mpp.config.commands import Supervised
from mpp.run.command import run_command


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run the command; returns what result.json says."""
    config = parse(Supervised, args)
    check(config)

    from mpp.commands.supervised import run_supervised  # heavy imports come after --help and the checks
    from mpp.run.machine import start_accelerator

    accelerator = start_accelerator(config.train.precision)
    result = run_supervised(config, accelerator)
    accelerator.end_training()
    return result


if __name__ == "__main__":
    run_command(main)
