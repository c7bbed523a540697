"""What an earlier run wrote, and whether it would be written again as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from torch_featviz.files import write_whole
from torch_featviz.schema import Between, SchemaError, decoded, restored

RECORD = "made.json"
_ROOM = Path(__file__).parents[1]
_CODE = (".py", ".js", ".css", ".html")


@dataclass(frozen=True)
class _Record:
    state: str
    accuracy: Annotated[float, Between(0, 1)]
    files: dict[str, str]


class Made:
    """The files of a demo, by name, each with a digest of its bytes, and the accuracy that was told.

    They are of one `state`: the network, what was asked, and the code that draws. Of another one nothing counts. A file
    that was deleted or edited is made again. The record is written after the files.

    Args:
        record: where it is kept.
        state: a digest, see `digest_of`.
    """

    def __init__(self, record: Path, state: str) -> None:
        self._record, self.state = record, state
        self.accuracy: float | None = None
        self._digests: dict[str, str] = {}
        try:
            kept = restored(_Record, decoded(record.read_bytes()))
            if kept.state == state:
                self.accuracy, self._digests = kept.accuracy, kept.files
        except (OSError, SchemaError):
            pass  # there is none, or it is no such record

    def same(self, path: Path) -> bool:
        """Whether the file is there as it was written."""
        try:
            return self._digests.get(path.name) == _digest(path.read_bytes())
        except OSError:
            return False

    def write(self, path: Path, make: Callable[[], bytes]) -> bool:
        """Make the file unless it is there as it was written; whether it had to be made."""
        if self.same(path):
            return False
        data = make()
        write_whole(path, data)
        self._digests[path.name] = _digest(data)
        return True

    def keep(self, accuracy: float) -> None:
        """Write the record."""
        self.accuracy = accuracy
        kept = _Record(self.state, accuracy, self._digests)
        write_whole(self._record, json.dumps(vars(kept), indent=1).encode())


def digest_of(*asked: object, files: list[Path]) -> str:
    """Of some words, of what is in some files, and of the code of this package and of torch."""
    digest = hashlib.sha256(repr((asked, torch.__version__)).encode())
    code = sorted(path for path in _ROOM.rglob("*") if path.suffix in _CODE)
    for path in (*code, *files):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
