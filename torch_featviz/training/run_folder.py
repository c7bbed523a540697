"""Where things are in a folder that a Monitor writes to. Links in it are never followed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, unquote
from zlib import crc32

from torch_featviz.errors import FileError

_PLAIN = re.compile(r"[a-z0-9_]+([.-][a-z0-9_]+)*")  # a name that every file system keeps as it is
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # by Windows
_LONGEST = 100  # letters of a name that is kept as it is
_READABLE = 60  # letters of another one before its checksum
_OLD_LONGEST = 200


def folder_of(layer: str) -> str:
    """The name of a layer's folder. No two layers share one, also where upper and lower case are the same.

    A name that not every file system keeps is shortened, and ends in `~` and a checksum.

    Example:
        >>> folder_of("features.0"), folder_of("")
        ('features.0', '(model)')
        >>> folder_of("Conv*"), folder_of("conv*")
        ('Conv_~cbe9ccbc1f13', 'conv_~0bce3fcf30c5')
    """
    if not layer:
        return "(model)"
    reserved = _RESERVED.match(layer.lower())
    if len(layer) <= _LONGEST and _PLAIN.fullmatch(layer) and not reserved:
        return layer
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "_", layer)[:_READABLE].lstrip(".")
    return f"{'_' if reserved else ''}{readable}~{sha256(layer.encode(errors='surrogatepass')).hexdigest()[:12]}"


def picture_file(folder: Path, name: str, step: int) -> Path:
    """The file of a picture, such as `"kernels/features.0"`, at a step.

    Raises:
        FileError: a part of the way is a link.
    """
    kind, _, layer = name.partition("/")
    return inside(folder, folder_of(kind), folder_of(layer), f"step-{step:08d}.png")


def inside(folder: Path, *parts: str) -> Path:
    """A path in a folder, no part of which is a link. The folder itself may be one: its owner named it.

    Raises:
        FileError: a part is a link.
    """
    path = folder
    for part in parts:
        path = path / part
        if _is_link(path):
            raise FileError(f"{str(path)!r} is a link, which could lead out of the run folder; remove it.")
    return path


def is_file(path: Path) -> bool:
    """Whether there is an ordinary file: no link, and nothing that blocks its reader, as a pipe does."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def picture_folders(folder: Path, kinds: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """The kind of each folder of pictures, and the folder."""
    for kind in kinds:
        if os.path.isdir(folder / kind) and not _is_link(folder / kind):
            for path in sorted((folder / kind).iterdir()):
                if path.is_dir() and not _is_link(path):
                    yield kind, path


def pictures(
    folder: Path, named: Mapping[int, Sequence[str] | None], kinds: Sequence[str], layers: Iterable[str]
) -> dict[str, dict[int, Path]]:
    """The files of pictures at some steps, by name and step. A link, and what is no file, is left out.

    Args:
        named: the names of each step's pictures; None where the folder is from before they were written down. Such
            names are read off the folders, as far as they tell.
        layers: names that may be among those.
    """
    whole = {_old_folder(layer): layer for layer in layers}
    old = {f"{kind}/{whole.get(path.name, unquote(path.name))}": path for kind, path in picture_folders(folder, kinds)}
    found: dict[str, dict[int, Path]] = {}
    for step, names in named.items():
        for name in old if names is None else names:
            try:
                path = old[name] / f"step-{step:08d}.png" if names is None else picture_file(folder, name, step)
            except FileError:
                continue
            if is_file(path):
                found.setdefault(name, {})[step] = path
    return found


def _old_folder(layer: str) -> str:
    """As folders were called before names were written down."""
    name, letters = quote(layer, safe="", errors="surrogatepass"), layer.encode(errors="surrogatepass")
    return f"{crc32(letters):08x}{name[-_OLD_LONGEST:]}" if len(name) > _OLD_LONGEST else name or "(model)"


def _is_link(path: Path) -> bool:
    return os.path.islink(path) or (hasattr(os.path, "isjunction") and os.path.isjunction(path))
