"""Decode a set once into one memory-mapped file: `python tools/pack.py --help`."""

from mpp.console import command, run_file

main = command("pack")

if __name__ == "__main__":
    run_file(__file__, main)
