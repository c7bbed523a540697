"""Getting bytes into a file as a whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from .errors import FileError


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write beside the target and rename, so that no reader ever sees half a file; missing folders are made.

    Raises:
        FileError: it cannot be written; nothing is left behind.
    """
    target = Path(path)
    try:
        aside = target.with_name(f".{uuid4().hex}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(data)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
    except (OSError, ValueError) as e:  # the latter where no file can have that name
        why = getattr(e, "strerror", None) or e
        why = "its folder is a file" if isinstance(e, (FileExistsError, NotADirectoryError)) else why
        raise FileError(f"cannot write {str(target)!r}: {why}; choose a folder you may write to.") from e
    return target
