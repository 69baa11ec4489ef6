"""Pretrain a Vision Transformer by masked patch prediction: `accelerate launch mpp/pretrain.py --help`."""

from __future__ import annotations

from mpp.config import Pretrain, check_pretrain, parse
from mpp.errors import run_command


def main(args: list[str] | None = None) -> dict[str, float]:
    """Run the command; returns the last evaluation's metrics."""
    config = parse(Pretrain, args)
    check_pretrain(config)

    from accelerate.utils import set_seed  # heavy imports come after --help and the checks

    from mpp.loop import prepare_output, share_of, start_accelerator, train
    from mpp.pretrain_job import PretrainJob, closing_summary, write_result
    from mpp.records import finish

    accelerator = start_accelerator(config.train.precision, config.train.accumulate)
    share = share_of(config.train, accelerator)
    output = prepare_output(config.output, "pretrain", config.resume, accelerator)
    set_seed(config.seed)
    with accelerator.main_process_first():  # it fills the cache of `datasets`, the others read it
        job = PretrainJob(config, accelerator)
    outcome = train(job, config, accelerator, share, output, headline="eval/bin_accuracy")
    if outcome.stopped:
        accelerator.print(
            f"stopped at step {outcome.step}; resume with: accelerate launch mpp/pretrain.py "
            f"--config {output / 'config.toml'} --output {output} --resume"
        )
    elif accelerator.is_main_process:
        finish(output, config, write_result(job, config, output, outcome))
        print(closing_summary(config, job, output, outcome))
    accelerator.end_training()
    return outcome.metrics


if __name__ == "__main__":
    run_command(main)
