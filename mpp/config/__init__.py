"""Options: what they are (`options`, `commands`), how they are read (`command_line`), what they may be (`bounds`)."""

from mpp.config.commands import Cache, Compare, FineTune, LinearProbe, Pack, Predict, Pretrain, Supervised

__all__ = ["Cache", "Compare", "FineTune", "LinearProbe", "Pack", "Predict", "Pretrain", "Supervised"]
