"""How far a long pass has come, in a file that is written as a whole or not at all."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_featviz.errors import FileError, OptionError
from torch_featviz.files import write_whole

EVERY = 100  # batches between two writes
_KIND, _VERSION = "torch_featviz top patches", 3  # 1 held one layer, 2 had the second axis for that of channels


def weights_of(model: nn.Module) -> int:
    """A checksum of parameters and buffers."""
    number = 0
    for name, tensor in model.state_dict().items():
        number = zlib.crc32(name.encode(), number)
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            number = zlib.crc32(flat.view(torch.uint8).numpy().data, number)
    return number


@dataclass(frozen=True)
class Checkpoint:
    """A file that keeps the state of a pass.

    Args:
        path: missing folders are made.
        every: batches between two writes.
        settings: plain values that tell one pass from another.
    """

    path: Path
    every: int
    settings: dict[str, Any]

    def write(self, state: dict[str, Any]) -> None:
        """Write beside the target and rename.

        Raises:
            FileError: it cannot be written; an earlier file stays as it was.
        """
        content = io.BytesIO()
        torch.save({"format": f"{_KIND} {_VERSION}", "settings": self.settings, "state": state}, content)
        write_whole(self.path, content.getvalue())

    def read(self) -> dict[str, Any] | None:
        """The state that `write` left; None where there is no file.

        Raises:
            FileError: the file is not one that `write` made, or another version of this package wrote it.
            OptionError: it belongs to another pass.
        """
        if not self.path.exists():
            return None
        file, remedy = repr(str(self.path)), "delete it, or give resume= another name."
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise FileError(f"{file} cannot be read ({type(error).__name__}); {remedy}") from error
        kind, _, version = str(content.get("format") if isinstance(content, dict) else "").rpartition(" ")
        if kind != _KIND:
            raise FileError(f"{file} is not a resume file of top_patches; {remedy}")
        if version != str(_VERSION):
            raise FileError(
                f"{file} was written by another version of torch_featviz (format {version}, this one reads "
                f"{_VERSION}); {remedy}"
            )
        written: dict[str, Any] = content["settings"]
        other = [f"{k}={written.get(k)!r}, not {v!r}" for k, v in self.settings.items() if written.get(k) != v]
        if other:
            raise OptionError(f"{file} belongs to another pass ({'; '.join(other)}); {remedy}")
        state: dict[str, Any] = content["state"]
        return state
