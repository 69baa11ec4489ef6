"""Options: what they are (`options`, `commands`), how they are read (`command_line`, `presets`), what one may be
(`bounds`), what several may be together (`checks`), and what follows from them (`derived`)."""

from mpp.config.commands import Ablate, Compare, Dense, FineTune, LinearProbe, Pretrain, Scaling, Supervised
from mpp.config.using import Cache, Convert, Doctor, Embed, Look, Pack, Predict

__all__ = [
    "Ablate",
    "Cache",
    "Compare",
    "Convert",
    "Dense",
    "Doctor",
    "Embed",
    "FineTune",
    "LinearProbe",
    "Look",
    "Pack",
    "Predict",
    "Pretrain",
    "Scaling",
    "Supervised",
]
