"""How does accuracy grow with compute and images? As one command: `accelerate launch recipes/scaling.py --help`."""

from mpp.console import command, run_file

main = command("scaling")

if __name__ == "__main__":
    run_file(__file__, main)
