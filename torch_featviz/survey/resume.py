"""How far a long pass has come, in a file that is written as a whole or not at all."""

from __future__ import annotations

import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
from torch import Tensor, nn

from torch_featviz.errors import FileError, OptionError
from torch_featviz.files import write_whole
from torch_featviz.schema import Between, Count, SchemaError, restored

EVERY = 100  # batches between two writes
_KIND, _VERSION = "torch_featviz top patches", 4  # before it nothing told which images were read
_REMEDY = "delete it, or give resume= another name."


def weights_of(model: nn.Module) -> int:
    """A checksum of parameters and buffers."""
    number = 0
    for name, tensor in model.state_dict().items():
        number = zlib.crc32(name.encode(errors="surrogatepass"), number)
        if isinstance(tensor, Tensor):
            number = checksum(tensor, number)
    return number


def checksum(tensor: Tensor, number: int = 0) -> int:
    """A checksum of a tensor's values, after what `number` is the checksum of."""
    if not tensor.numel():
        return number
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data, number)


@dataclass(frozen=True)
class State:
    """How far a pass has come.

    Args:
        batches: done.
        size: `c h w` of each image; zeros where no image was seen.
        tops: of each layer the state of its `TopK`, empty where no image was seen.
        images: a checksum of each batch.
        left_out: the images of these batches that could not be read, by number, each with the reason.
    """

    batches: Count
    size: tuple[Count, Count, Count]
    tops: dict[str, list[Tensor]]
    images: list[Annotated[int, Between(0, 2**32 - 1)]]
    left_out: list[tuple[Count, str]]

    def __post_init__(self) -> None:
        if len(self.images) != self.batches:
            raise SchemaError(f"a list of {self.batches}, one a batch, got {len(self.images)}", ".images")
        for layer, top in self.tops.items():
            for i, tensor in enumerate(top):
                if not _is_dense(tensor):
                    raise SchemaError("a dense tensor of numbers", f".tops.{layer}[{i}]")

    def checksum(self) -> int:
        """Of all that it holds."""
        number = zlib.crc32(repr((self.batches, self.size, self.images, self.left_out)).encode())
        for layer, top in self.tops.items():
            for tensor in top:
                said = f"{layer} {tensor.dtype} {tuple(tensor.shape)}"
                number = zlib.crc32(said.encode(errors="surrogatepass"), number)
                number = checksum(tensor, number)
        return number


def _is_dense(tensor: Tensor) -> bool:
    """Whether it is an ordinary tensor of as many numbers as it says, which a file need not hold."""
    strided = type(tensor) is Tensor and tensor.layout == torch.strided and not tensor.is_nested
    if not strided or tensor.device.type != "cpu":
        return False
    size = tensor.numel() * tensor.element_size()
    return not tensor.is_quantized and size <= tensor.untyped_storage().nbytes()


@dataclass(frozen=True)
class _File:
    format: str
    what: dict[str, Any]
    state: State
    checksum: Count  # of the state


@dataclass(frozen=True)
class Checkpoint:
    """A file that keeps the state of a pass.

    Args:
        path: missing folders are made.
        every: batches between two writes.
        what: plain values that tell one pass from another.
    """

    path: Path
    every: int
    what: dict[str, Any]

    def write(self, state: State) -> None:
        """Write beside the target and rename.

        Raises:
            FileError: it cannot be written; an earlier file stays as it was.
        """
        content = io.BytesIO()
        file = _File(f"{_KIND} {_VERSION}", self.what, state, state.checksum())
        torch.save({**vars(file), "state": vars(state)}, content)
        write_whole(self.path, content.getvalue())

    def read(self) -> State | None:
        """The state that `write` left; None where there is no file.

        Raises:
            FileError: the file is not one that `write` made, or another version of this package wrote it.
            OptionError: it belongs to another pass.
        """
        if not os.path.exists(self.path):
            return None
        file = repr(str(self.path))
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise FileError(f"{file} cannot be read ({type(error).__name__}); {_REMEDY}") from error
        kind, _, version = str(content.get("format") if isinstance(content, dict) else "").rpartition(" ")
        if kind != _KIND:
            raise FileError(f"{file} is not a resume file of top_patches; {_REMEDY}")
        if version != str(_VERSION):
            raise FileError(
                f"{file} was written by another version of torch_featviz (format {version:.20}, this one reads "
                f"{_VERSION}); {_REMEDY}"
            )
        try:
            written = restored(_File, content)
            _check_what(written.what, self.what)
            if written.checksum != written.state.checksum():
                raise SchemaError("that of the state, which was changed after it was written", ".checksum")
        except SchemaError as error:
            self.refuse(error)
        other = [f"{k}={written.what[k]!r:.300}, not {v!r:.300}" for k, v in self.what.items() if written.what[k] != v]
        if other:
            raise OptionError(f"{file} belongs to another pass ({'; '.join(other)}); {_REMEDY}")
        return written.state

    def refuse(self, error: SchemaError) -> NoReturn:
        """Raise FileError: the file is damaged."""
        raise FileError(f"{str(self.path)!r} is damaged: {error}; {_REMEDY}") from error

    def refuse_images(self, why: str) -> NoReturn:
        """Raise OptionError: the file is of other images."""
        raise OptionError(f"{str(self.path)!r} belongs to a pass over other images: {why}; {_REMEDY}")


def _check_what(written: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise SchemaError unless both have the same keys, and plain values."""
    for name in dict.fromkeys((*expected, *written)):
        if (name in written) != (name in expected):
            raise SchemaError("there, but is missing" if name in expected else "absent", f".what.{name}")
        value = written[name]
        if not (value is None or type(value) in (str, int)):
            try:
                restored(list[str], value)
            except SchemaError as error:
                raise SchemaError("a string, a whole number, or a list of strings", f".what.{name}") from error


def check_top(state: list[Tensor], k: int, channels: int, places: int, seen: int | None) -> None:
    """Whether this is the state of a `TopK` that has seen the maps of some images.

    Args:
        channels: of the maps.
        places: height times width of a map.
        seen: number of images; None where it is not known.
    Raises:
        SchemaError: it is not.
    """
    columns = {"nan": (channels,), "values": (k, channels), "images": (k, channels), "positions": (k, channels)}
    shapes = {**columns, "seen": ()}
    if len(state) != len(shapes):
        raise SchemaError(f"a list of {len(shapes)} tensors, got {len(state)}")
    for i, (tensor, shape) in enumerate(zip(state, shapes.values(), strict=True)):
        kinds = (torch.float32, torch.float64) if i == 1 else (torch.int64,)
        if tensor.dtype not in kinds or tuple(tensor.shape) != shape:
            what = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise SchemaError(f"a tensor of {kinds[0]} of shape {shape}, got {what}", f"[{i}]")
    nan, values, images, positions, count = state
    number = int(count)
    if number < 1 or (seen is not None and number != seen):
        raise SchemaError(f"the number of images, {'1 or more' if seen is None else seen}, got {number}", "[4]")
    there = torch.arange(k, device="cpu")[:, None] < min(k, number)  # the rows that hold an image
    rules = {
        "[0]": (nan >= 0, "at least 0"),
        "[1]": (~values.isnan() & (there | (values == -torch.inf)), "numbers, and -inf beyond the last image"),
        "[2]": (torch.where(there, (images >= 0) & (images < number), images == -1), f"from 0 to {number - 1}"),
        "[3]": (torch.where(there, (positions >= 0) & (positions < places), positions == -1), f"below {places}"),
    }
    for field, (fits, text) in rules.items():
        if not bool(fits.all()):
            raise SchemaError(text, field)
    if bool((values[1:] > values[:-1]).any()):
        raise SchemaError("in descending order", "[1]")
    in_order = images.sort(0).values
    if bool(((in_order[1:] == in_order[:-1]) & (in_order[1:] >= 0)).any()):
        raise SchemaError("different in each column", "[2]")
