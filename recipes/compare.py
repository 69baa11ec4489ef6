"""What does pretraining buy? The whole experiment as one command: `accelerate launch recipes/compare.py --help`."""

from mpp.console import command, run_file

main = command("compare")

if __name__ == "__main__":
    run_file(__file__, main)
