"""Which choices matter? One option changed at a time, as one command: `accelerate launch recipes/ablate.py --help`."""

from mpp.console import command, run_file

main = command("ablate")

if __name__ == "__main__":
    run_file(__file__, main)
