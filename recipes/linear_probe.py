"""Judge a backbone by its frozen features: `accelerate launch recipes/linear_probe.py --help`."""

from __future__ import annotations

from mpp.config import LinearProbe, parse
from mpp.errors import run_command


def main(args: list[str] | None = None) -> dict[str, float]:
    """Run the command; returns the accuracies."""
    config = parse(LinearProbe, args)

    from mpp.probe_job import run_probe  # heavy imports come after --help

    return run_probe(config)


if __name__ == "__main__":
    run_command(main)
