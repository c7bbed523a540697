"""A layer over its training: an animation, or a strip of its steps."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from torch_featviz.errors import OptionError
from torch_featviz.files import write_whole
from torch_featviz.picture import Picture, Sheet
from torch_featviz.picture.color import total_of
from torch_featviz.picture.text import Pixels

STRIP = 8  # frames of a strip at most
_HOLD = 8  # times as long the last frame stands


class Film:
    """Sheets of one layer, one a step, all on one scale.

    Args:
        steps: of each sheet.
        sheets: of one size.
    Raises:
        OptionError: there is no sheet.
    """

    def __init__(self, steps: Sequence[int], sheets: Sequence[Sheet]) -> None:
        if not sheets:
            raise OptionError("a film needs at least one frame.")
        self.steps = list(steps)
        self._sheets = list(sheets)

    def numpy(self) -> Pixels:
        """All frames, `t H W 3` uint8; what is lower than the highest has white below it."""
        frames = [sheet.numpy() for sheet in self._sheets]
        height, width = (max(frame.shape[axis] for frame in frames) for axis in (0, 1))
        film = np.full((len(frames), height, width, 3), 255, np.uint8)
        for page, frame in zip(film, frames, strict=True):
            page[: frame.shape[0], : frame.shape[1]] = frame
        return film

    def strip(self) -> Picture:
        """Some steps side by side, the first and the last among them."""
        chosen = sorted({round(i) for i in np.linspace(0, len(self.steps) - 1, STRIP)})
        sheets = [self._sheets[i] for i in chosen]
        last = sheets[-1]
        legend = replace(last.legend, counts=total_of(sheet.legend.counts for sheet in sheets))
        head, _, rest = last.title.partition(", step ")
        return Sheet(
            torch.stack([sheet.pixels for sheet in sheets]),
            legend,
            title=f"{head}, steps {self.steps[0]:,} to {self.steps[-1]:,}:{rest.partition(':')[2]}",
            ncols=len(sheets) if last.pixels.shape[2] <= 64 else 4,
            labels=tuple(f"step {self.steps[i]:,}" for i in chosen),
        )

    def save(self, path: str | os.PathLike[str], *, duration: int = 150) -> Path:
        """Write an animation, or the strip, at once or not at all.

        Args:
            path: ends in `.webp` (the very colours), in `.gif` (256 of them), or in `.png` for the strip.
            duration: of each frame in ms; the last stands eight times as long.
        Returns:
            The path.
        Raises:
            OptionError: `path` has another ending, or `duration` is below 1.
            FileError: it cannot be written; nothing is left behind.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".png":
            return self.strip().save(path)
        if suffix not in (".webp", ".gif"):
            raise OptionError(f"a film is saved as '.webp', '.gif' or, as a strip, '.png'; got {str(path)!r}.")
        if duration < 1:
            raise OptionError(f"duration must be at least 1 ms, got {duration}.")
        first, *others = [Image.fromarray(frame) for frame in self.numpy()]
        options = {"lossless": True} if suffix == ".webp" else {"optimize": False}
        times = [duration] * len(others) + [_HOLD * duration]
        data = io.BytesIO()
        first.save(data, suffix[1:], save_all=True, append_images=others, duration=times, loop=0, **options)
        return write_whole(path, data.getvalue())
