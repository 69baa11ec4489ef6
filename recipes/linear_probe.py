"""Judge a backbone by its frozen features: `accelerate launch recipes/linear_probe.py --help`."""

from __future__ import annotations

from mpp.config.checks import check
from mpp.config.command_line import parse
from mpp.config.commands import LinearProbe
from mpp.run.command import run_command


def main(args: list[str] | None = None) -> dict[str, float]:
    """Run the command; returns the accuracies."""
    config = parse(LinearProbe, args)
    check(config)

    from mpp.commands.linear_probe import run_probe
    from mpp.run.machine import start_accelerator  # heavy imports come after --help and the checks

    accelerator = start_accelerator(config.precision)
    result = run_probe(config, accelerator)
    accelerator.end_training()
    return result


if __name__ == "__main__":
    run_command(main)
