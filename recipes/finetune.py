"""Fine-tune a backbone on labelled images, or measure one that was: `accelerate launch recipes/finetune.py --help`."""

from __future__ import annotations

from typing import Any

from mpp.config.checks import check
from mpp.config.command_line import parse
from mpp.config.commands import FineTune
from mpp.run.command import run_command


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run the command; returns what result.json says."""
    config = parse(FineTune, args)
    check(config)

    from mpp.commands.finetune import (
        run_evaluation,  # heavy imports come after --help and the checks
        run_finetuning,
    )
    from mpp.run.machine import start_accelerator

    accelerator = start_accelerator(config.train.precision)
    result = (run_evaluation if config.eval_only else run_finetuning)(config, accelerator)
    accelerator.end_training()
    return result


if __name__ == "__main__":
    run_command(main)
