"""Fine-tune a backbone, or measure a fine-tuned model: `accelerate launch recipes/finetune.py --help`."""

from mpp.console import command, run_file

main = command("finetune")

if __name__ == "__main__":
    run_file(__file__, main)
