"""Measure a backbone by its frozen features: `accelerate launch recipes/linear_probe.py --help`."""

from mpp.console import command, run_file

main = command("probe")

if __name__ == "__main__":
    run_file(__file__, main)
