"""What did pretraining buy? The experiment as one command: `accelerate launch recipes/compare.py --help`."""

from __future__ import annotations

from pathlib import Path

from mpp.config.checks import check
from mpp.config.command_line import parse
from mpp.config.commands import Compare
from mpp.run.command import run_command


def main(args: list[str] | None = None) -> Path | None:
    """Run the command; returns the comparison's folder, or None if it has not ended."""
    config = parse(Compare, args)
    check(config)

    from mpp.comparison.compare import run_comparison  # heavy imports come after --help and the checks
    from mpp.run.machine import start_accelerator

    accelerator = start_accelerator(config.finetune.train.precision)
    output = run_comparison(config, accelerator)
    accelerator.end_training()
    return output


if __name__ == "__main__":
    run_command(main)
