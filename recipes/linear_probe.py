"""Judge a backbone by its frozen features: `accelerate launch recipes/linear_probe.py --help`."""

from __future__ import annotations

from mpp.checks import check_probe
from mpp.config import LinearProbe, parse
from mpp.errors import run_command


def main(args: list[str] | None = None) -> dict[str, float]:
    """Run the command; returns the accuracies."""
    config = parse(LinearProbe, args)
    check_probe(config)

    from mpp.machine import start_accelerator  # heavy imports come after --help and the checks
    from mpp.probe_job import run_probe

    accelerator = start_accelerator(config.precision)
    result = run_probe(config, accelerator)
    accelerator.end_training()
    return result


if __name__ == "__main__":
    run_command(main)
