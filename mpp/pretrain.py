"""Pretrain a Vision Transformer by masked patch prediction: `accelerate launch mpp/pretrain.py --help`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mpp.config import Pretrain
from mpp.console import call, command, run_file

main = command("pretrain")


class _Callable(ModuleType):
    """`mpp.pretrain` is this file, which `accelerate launch` runs, and the function of that name."""

    def __call__(self, config: Pretrain | Mapping[str, Any] | None = None, **options: Any) -> Any:
        return call("pretrain", config, **options)


if __name__ == "__main__":
    run_file(__file__, main)
else:
    sys.modules[__name__].__class__ = _Callable
