"""What the values of an image mean: how many channels it has, and which range of values its 0..255 stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from einops import repeat

from mpp.errors import counted

Range = tuple[float, float]


MOST_CHANNELS = 64


RANGES: dict[str, Range] = {  # of types whose values have a convention
    "uint8": (0, 255),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "int32": (0, 65535),  # of pictures: PIL's type for 16 bits of grey
}


@dataclass(frozen=True)
class Bands:
    """How the values of a set's images become uint8 pixels.

    Eight bits are enough once a range is chosen: the colour bins of the targets have 3 bits by default, and 8 at most.
    """

    channels: int | None = None  # None: what each image has
    range: Range | None = None  # the values that become 0 and 255; None: the whole range of their type

    def pixels(self, values: np.ndarray) -> np.ndarray:
        """Values (..., C) of any type -> uint8 (..., channels). Raises ValueError, with the reason, if it cannot be."""
        values = with_channels(values, self.channels)
        if values.dtype == np.uint8 and self.range is None:
            return values
        low, high = self.range or range_of_type(values)
        scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        return scaled.clip(0, 255, out=scaled).round(out=scaled).astype(np.uint8)


def range_of_type(values: np.ndarray) -> Range:
    """The whole range of the values' type. Raises ValueError for a type without one."""
    found = RANGES.get(values.dtype.name)
    if found is None or (
        values.dtype == np.int32 and values.size and not 0 <= values.min() <= values.max() <= found[1]
    ):
        raise ValueError(
            f"its values are {values.dtype} from {values.min():g} to {values.max():g}, a type without a usual range; "
            f"--data.range LOW HIGH says which values are black and white, --data.range auto finds them"
        )
    return found


def as_type(values: np.ndarray, kind: str) -> np.ndarray:
    """Values in another type: the same shares of its whole range. Raises ValueError if a type has none."""
    low, high = range_of_type(values)
    if kind not in RANGES:
        raise ValueError(f"its values are {values.dtype.name}, and those of the others {kind}")
    bottom, top = RANGES[kind]
    return ((values.astype(np.float32) - low) * ((top - bottom) / (high - low)) + bottom).round().astype(kind)


def with_channels(values: np.ndarray, channels: int | None) -> np.ndarray:
    """Values (..., C) with the number of channels that is asked for: one channel is repeated to three."""
    there = values.shape[-1]
    if channels in (None, there):
        return values
    if (there, channels) == (1, 3):
        return np.asarray(repeat(values, "... 1 -> ... c", c=3))
    raise ValueError(other_channels(there, channels))


def other_channels(there: int, wanted: int | None) -> str:
    """Why an image is refused that has another number of channels than its set."""
    here = counted(there, "channel")
    return f"it has {here}, and the others of the set have {wanted}; --data.channels says how many are read"


def displayed(channels: int) -> list[int]:
    """The channels that a picture shows as red, green and blue."""
    return [min(number, channels - 1) for number in range(3)]
