"""A folder that can be read at any time: figures as lines of JSON, pictures as PNG."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from weakref import WeakValueDictionary

from torch_featviz.choices import FIGURES
from torch_featviz.errors import FileError
from torch_featviz.files import write_whole
from torch_featviz.training.frames import KINDS
from torch_featviz.training.history import read_lines
from torch_featviz.training.run_folder import inside, is_file, picture_file, picture_folders

from .sink import Record

_ASIDE, _PICTURE = re.compile(r"\.[0-9a-f]{32}\.tmp"), re.compile(r"step-(\d{8,})\.png")
_CLAIMED: WeakValueDictionary[Path, FolderSink] = WeakValueDictionary()  # of this process


class FolderSink:
    """Writes `samples.jsonl`, a line a step, and `<kind>/<layer>/step-00000400.png`.

    Each line names its pictures. A layer whose name some file system would not keep has a folder that ends in a
    checksum. Links in the folder are not followed. Nothing in it is ever half there: a line that could not be written
    as a whole is taken back, pictures are renamed into place. A run that goes on from step `n` replaces what an earlier
    one wrote from there on.

    Args:
        folder: made when first written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._last: int | None = None  # the step of the last line, once this run has written one

    def holds_samples(self) -> bool:
        """Whether a run has written here."""
        return os.path.exists(self.folder / FIGURES)

    def write(self, record: Record) -> None:
        """Add one step.

        Raises:
            FileError: it cannot be written, or is a link; what was there before still is.
        """
        self._claim()
        figures = inside(self.folder, FIGURES)
        if os.path.lexists(figures) and not is_file(figures):
            raise FileError(f"cannot write {str(figures)!r}: it is no ordinary file; remove it.")
        if self._last is None or record.step <= self._last:
            self._cut_from(record.step)
        line = json.dumps(record.as_dict(), allow_nan=False) + "\n"
        _append(figures, line.encode())
        self._last = record.step
        failed = []
        for name, picture in record.pictures.items():
            try:
                write_whole(picture_file(self.folder, name, record.step), picture.png())
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

    def _cut_from(self, step: int) -> None:
        """Take away what an earlier run wrote of this step and later ones, and what it left half done."""
        pictures = [file for _, folder in picture_folders(self.folder, KINDS) for file in folder.iterdir()]
        for aside in [*self.folder.glob(".*.tmp"), *pictures]:
            if _ASIDE.fullmatch(aside.name) and is_file(aside):
                aside.unlink(missing_ok=True)
        for picture in pictures:
            if (number := _PICTURE.fullmatch(picture.name)) and int(number[1]) >= step and is_file(picture):
                picture.unlink(missing_ok=True)
        figures = self.folder / FIGURES
        if not is_file(figures):
            return
        kept = [line.text for line in read_lines(self.folder) if line.sample.step < step]
        whole = b"".join(kept)
        if len(whole) != figures.stat().st_size:
            write_whole(figures, whole)


def _append(path: Path, line: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0, opener=_no_link) as file:
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


def _no_link(path: str, flags: int) -> int:
    """Open what is no link, also where one was put there this moment."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
