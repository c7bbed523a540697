"""How far a long pass has come, in a file that is there as a whole or not at all."""

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
_FORMAT = "torch_featviz top patches 1"


def weights_of(model: nn.Module) -> int:
    """A number that other parameters or buffers would hardly have."""
    number = 0
    for name, tensor in model.state_dict().items():
        number = zlib.crc32(name.encode(), number)
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            number = zlib.crc32(flat.view(torch.uint8).numpy().data, number)
    return number


@dataclass(frozen=True)
class Kept:
    """A file that keeps how far a pass has come.

    Args:
        path: missing folders are made.
        every: batches between two writes.
        what: plain values that say which pass it is.
    """

    path: Path
    every: int
    what: dict[str, Any]

    def write(self, state: dict[str, Any]) -> None:
        """Write beside the target and rename.

        Raises:
            FileError: it cannot be written; what was there before is still there.
        """
        content = io.BytesIO()
        torch.save({"format": _FORMAT, "what": self.what, "state": state}, content)
        write_whole(self.path, content.getvalue())

    def read(self) -> dict[str, Any] | None:
        """The state that `write` left; None where there is no file.

        Raises:
            FileError: the file is not one that `write` made.
            OptionError: it belongs to another pass.
        """
        if not self.path.exists():
            return None
        again = "delete it, or give resume= another name."
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise FileError(f"{str(self.path)!r} cannot be read ({type(error).__name__}); {again}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise FileError(f"{str(self.path)!r} holds no state of top_patches; {again}")
        there: dict[str, Any] = content["what"]
        other = [f"{key}={there.get(key)!r}, not {here!r}" for key, here in self.what.items() if there.get(key) != here]
        if other:
            raise OptionError(f"{str(self.path)!r} is of another pass ({'; '.join(other)}); {again}")
        state: dict[str, Any] = content["state"]
        return state
