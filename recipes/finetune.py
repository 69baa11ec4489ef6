"""Fine-tune a backbone on labelled images, or measure one that was: `accelerate launch recipes/finetune.py --help`."""

from __future__ import annotations

from typing import Any

from mpp.checks import check_finetune
from mpp.config import FineTune, parse
from mpp.errors import run_command


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run the command; returns what result.json says."""
    config = parse(FineTune, args)
    check_finetune(config)

    from mpp.finetune_job import run_evaluation, run_finetuning  # heavy imports come after --help and the checks
    from mpp.machine import start_accelerator

    accelerator = start_accelerator(config.train.precision)
    result = (run_evaluation if config.eval_only else run_finetuning)(config, accelerator)
    accelerator.end_training()
    return result


if __name__ == "__main__":
    run_command(main)
