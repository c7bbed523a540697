"""A folder that can be read at any time: figures as lines of JSON, pictures as PNG."""

from __future__ import annotations

import json
import os
import re
import zlib
from pathlib import Path
from urllib.parse import quote
from weakref import WeakValueDictionary

from torch_featviz.choices import FIGURES
from torch_featviz.errors import FileError
from torch_featviz.files import write_whole
from torch_featviz.training.frames import KINDS
from torch_featviz.training.history import lines

from .sink import Record

_ASIDE, _PICTURE = re.compile(r"\.[0-9a-f]{32}\.tmp"), re.compile(r"step-(\d{8,})\.png")
_LONGEST = 200  # letters of a folder's name
_CLAIMED: WeakValueDictionary[Path, FolderSink] = WeakValueDictionary()  # of this process


class FolderSink:
    """Writes `samples.jsonl`, a line a step, and `<kind>/<layer>/step-00000400.png`.

    Nothing in it is ever half there: a line that could not be written as a whole is taken back, pictures are renamed
    into place. A run that goes on from step `n` replaces what an earlier one wrote from there on.

    Args:
        folder: made when first written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._last: int | None = None  # the step of the last line, once this run has written one

    def holds_samples(self) -> bool:
        """Whether a run has written here."""
        return (self.folder / FIGURES).exists()

    def write(self, record: Record) -> None:
        """Add one step.

        Raises:
            FileError: it cannot be written; what was there before still is.
        """
        self._claim()
        if self._last is None or record.step <= self._last:
            self._cut_from(record.step)
        line = json.dumps(record.as_dict(), allow_nan=False) + "\n"
        _append(self.folder / FIGURES, line.encode())
        self._last = record.step
        failed = []
        for name, picture in record.pictures.items():
            try:
                write_whole(self._path(name, record.step), picture.png())
            except FileError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def close(self) -> None:
        """Another run may write here; nothing is open between two steps."""
        if _CLAIMED.get(self.folder.resolve()) is self:
            del _CLAIMED[self.folder.resolve()]
        self._last = None

    def _claim(self) -> None:
        if _CLAIMED.setdefault(self.folder.resolve(), self) is not self:
            raise FileError(f"another monitor already writes to {str(self.folder)!r}; use one folder per monitor.")

    def _path(self, name: str, step: int) -> Path:
        kind, _, layer = name.partition("/")
        folder = quote(layer, safe="") or "(model)"
        if len(folder) > _LONGEST:
            folder = f"{zlib.crc32(layer.encode()):08x}{folder[-_LONGEST:]}"
        return self.folder / kind / folder / f"step-{step:08d}.png"

    def _cut_from(self, step: int) -> None:
        """Take away what an earlier run wrote of this step and later ones, and what it left half done."""
        pictures = [file for kind in KINDS for file in (self.folder / kind).glob("*/*")]
        for aside in [*self.folder.glob(".*.tmp"), *pictures]:
            if _ASIDE.fullmatch(aside.name):
                aside.unlink(missing_ok=True)
        for picture in pictures:
            if (number := _PICTURE.fullmatch(picture.name)) and int(number[1]) >= step:
                picture.unlink(missing_ok=True)
        figures = self.folder / FIGURES
        if not figures.exists():
            return
        text = figures.read_bytes()
        kept = [line for line, plain in lines(text) if plain["step"] < step]
        if (whole := b"".join(kept)) != text:
            write_whole(figures, whole)


def _append(path: Path, line: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                written = file.write(line)
                if written != len(line):
                    raise OSError(28, "No space left on device")
            except BaseException:
                file.truncate(before)
                raise
    except OSError as e:
        raise FileError(f"cannot write {str(path)!r}: {e.strerror or e}.") from e
