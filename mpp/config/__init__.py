"""Options: what they are (`options`, `commands`), how they are read (`command_line`), what they may be (`bounds`)."""

from mpp.config.commands import Compare, FineTune, LinearProbe, Pack, Pretrain, Supervised

__all__ = ["Compare", "FineTune", "LinearProbe", "Pack", "Pretrain", "Supervised"]
