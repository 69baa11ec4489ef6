"""A folder of pictures with their numbers beside them, and the same pictures in TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mpp.files import csv_cell, write_whole
from mpp.run.folder import save_picture


class Gallery:
    """What is kept of pictures and numbers, in TensorBoard under `group`; `files` are the names so far."""

    def __init__(self, folder: Path, group: str = "look") -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.group, self.files = folder, group, list[str]()
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def figure(self, name: str, figure: Figure) -> None:
        """Keep a matplotlib figure."""
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(110)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # (H, W, 3)
        self.picture(name, torch.from_numpy(rearrange(pixels, "h w c -> c h w").copy()))

    def picture(self, name: str, picture: Tensor) -> None:
        """Keep a picture, uint8 (3, H, W)."""
        save_picture(picture, self.folder / f"{name}.png")
        self.writer.add_image(f"{self.group}/{name}", picture, 0)
        self.files.append(f"{name}.png")

    def table(self, name: str, header: list[str], rows: list[list[Any]]) -> None:
        """Keep the numbers of a picture."""
        text = io.StringIO()
        csv.writer(text).writerows([header, *(map(csv_cell, row) for row in rows)])
        write_whole(self.folder / f"{name}.csv", text.getvalue().encode())
        self.files.append(f"{name}.csv")

    def close(self) -> None:
        """Have all on the disk."""
        self.writer.close()
