"""Pretrain on labelled images, the baseline of MPP: `accelerate launch recipes/supervised.py --help`."""

from mpp.console import command, run_file

main = command("supervised")

if __name__ == "__main__":
    run_file(__file__, main)
