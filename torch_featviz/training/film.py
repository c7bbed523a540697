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

from torch_featviz.displayed import Displayed, within
from torch_featviz.errors import OptionError
from torch_featviz.files import write_whole
from torch_featviz.picture import Picture, Sheet
from torch_featviz.picture.color import total_of
from torch_featviz.picture.text import Pixels

STRIP = 8  # frames of a strip at most,
WIDE = 2000  # and of a table so many that it is about so many pixels wide,
FEW = 3  # but not fewer than these
_CELL = 32  # pixels that a map of a table is wide at least
_HOLD = 8  # times as long the last frame stands


class Film(Displayed):
    """Pictures of one layer at several steps, all on one scale: an animation, or a strip.

    Args:
        steps: the step of each sheet.
        sheets: one picture per step, all of one size.
        table: the sheets are maps of one or several images; a strip is then a table with one row per map, and one
            column per image for each step.
    Raises:
        OptionError: there is no sheet.
    """

    def __init__(self, steps: Sequence[int], sheets: Sequence[Sheet], *, table: bool = False) -> None:
        if not sheets:
            raise OptionError("a film needs at least one frame.")
        self.steps = list(steps)
        self._sheets = list(sheets)
        self._table = table

    def __repr__(self) -> str:
        return within("Film(", [f"{len(self.steps)} frames", f"steps {self.steps[0]:,} to {self.steps[-1]:,}"], ")")

    def numpy(self) -> Pixels:
        """Return all frames, `t H W 3` uint8; lower frames are padded with white at the bottom."""
        frames = [sheet.numpy() for sheet in self._sheets]
        height, width = (max(frame.shape[axis] for frame in frames) for axis in (0, 1))
        film = np.full((len(frames), height, width, 3), 255, np.uint8)
        for page, frame in zip(film, frames, strict=True):
            page[: frame.shape[0], : frame.shape[1]] = frame
        return film

    def strip(self) -> Picture:
        """Draw some steps side by side, the first and the last among them; a note says which, if some are left out."""
        last = self._sheets[-1]
        most = STRIP
        if self._table:
            most = max(FEW, min(STRIP, WIDE // (last.group * (_zoom_of(last) * last.cells.shape[3] + 7))))
        chosen = sorted({round(i) for i in np.linspace(0, len(self.steps) - 1, most)})
        steps, sheets = [self.steps[i] for i in chosen], [self._sheets[i] for i in chosen]
        head, _, rest = last.title.partition(", step ")
        counts = total_of(sheet.legend.counts for sheet in sheets)
        total = sum(sheet.legend.total for sheet in sheets)
        legend = replace(last.legend, counts=counts, total=total, notes=_notes(steps, sheets))
        title = f"{head}, steps {self.steps[0]:,} to {self.steps[-1]:,}:{rest.partition(':')[2]}"
        draw = _as_table if self._table else _side_by_side
        return replace(draw(steps, sheets), legend=legend, title=title)

    def save(self, path: str | os.PathLike[str], *, duration: int = 150) -> Path:
        """Write an animation, or the strip. The file is written as a whole or not at all.

        Args:
            path: ends in `.webp` (exact colours), `.gif` (256 colours), or `.png` for the strip.
            duration: time per frame in ms; the last frame stays eight times as long.
        Returns:
            The path.
        Raises:
            OptionError: `path` has another ending, or `duration` is below 1.
            FileError: the file cannot be written; nothing is left behind.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".png":
            return self.strip().save(path)
        if suffix not in (".webp", ".gif"):
            raise OptionError(f"path must end in '.webp', '.gif', or '.png' for a strip; got {str(path)!r}.")
        if duration < 1:
            raise OptionError(f"duration must be at least 1 ms, got {duration}.")
        return write_whole(path, self.animation(suffix[1:], duration=duration))

    def animation(self, kind: str = "webp", *, duration: int = 150) -> bytes:
        """What `save` writes to a `.webp` or a `.gif`."""
        first, *others = [Image.fromarray(frame) for frame in self.numpy()]
        options = {"lossless": True} if kind == "webp" else {"optimize": False}
        times = [duration] * len(others) + [_HOLD * duration]
        data = io.BytesIO()
        first.save(data, kind, save_all=True, append_images=others, duration=times, loop=0, **options)
        return data.getvalue()


def _side_by_side(steps: list[int], sheets: list[Sheet]) -> Sheet:
    """The cells of a step as one picture."""
    return Sheet(
        torch.stack([sheet.pixels for sheet in sheets]),
        sheets[-1].legend,
        ncols=len(sheets) if sheets[-1].pixels.shape[2] <= 64 else 4,
        labels=tuple(f"step {step:,}" for step in steps),
    )


def _as_table(steps: list[int], sheets: list[Sheet]) -> Sheet:
    """A map a row, and its images of each step next to each other; a map that its sheet marks is marked there.

    Of one map alone, as a heatmap is, the images are the rows.
    """
    last = sheets[-1]
    images, maps = last.group, len(last.cells) // last.group
    names = last.columns or ("",) * images
    dead = np.array([[label.endswith("×") for label in sheet.labels] or [False] * maps * images for sheet in sheets])
    if maps == 1:
        images, maps, rows = 1, images, names if last.columns else ()
        dead = np.repeat(dead[:, :1], maps, axis=1)
    else:
        rows = tuple(f"channel {label.removesuffix(' ×')}" for label in last.labels[::images])
    # steps, maps, images -> maps, steps, images
    cells = torch.stack([sheet.cells.reshape(maps, images, *sheet.cells.shape[1:]) for sheet in sheets], dim=1)
    marks = dead.reshape(len(sheets), maps, images).swapaxes(0, 1).flatten()
    several = images > 1
    return Sheet(
        cells.flatten(0, 2),
        last.legend,
        ncols=len(sheets) * images,
        labels=tuple("×" if mark else "" for mark in marks),
        rows=rows,
        columns=tuple(name.removeprefix("image ") for name in names)
        if several
        else tuple(f"{step:,}" for step in steps),
        corner="image" if several else "step",
        group=images,
        heads=tuple(f"step {step:,}" for step in steps) if several else (),
        zoom=_zoom_of(last),
    )


def _zoom_of(sheet: Sheet) -> int:
    """Pixels of a table for each pixel of a map."""
    return max(1, -(-_CELL // max(sheet.cells.shape[2:])))


def _notes(steps: list[int], sheets: list[Sheet]) -> tuple[str, ...]:
    """The notes of all sheets: each once, and where it is not of all of them, with its steps."""
    of: dict[str, list[int]] = {}
    for step, sheet in zip(steps, sheets, strict=True):
        counted = ", ".join(words for _, words in sheet.legend.marks()) if len(sheets) > 1 else ""
        for note in dict.fromkeys((*sheet.legend.notes, *([counted] if counted else []))):
            of.setdefault(note, []).append(step)
    shared = [note for note, at in of.items() if len(at) == len(steps)]
    own = [f"{_words(at)}: {note}" for note, at in of.items() if len(at) < len(steps)]
    return (*shared, *own)


def _words(steps: list[int]) -> str:
    """`step 5`, `steps 5 and 7`, `steps 5, 6 and 7`."""
    *others, last = [f"{step:,}" for step in steps]
    return f"steps {', '.join(others)} and {last}" if others else f"step {last}"
