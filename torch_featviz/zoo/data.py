"""Data sets: circles and crosses, CIFAR-10, MNIST, folders of images; and channel statistics."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from torch_featviz.capture import Moments
from torch_featviz.displayed import Displayed, shortened
from torch_featviz.errors import DtypeError, FileError, OptionError, ShapeError, WeightsError
from torch_featviz.gate import gated
from torch_featviz.model.inputs import check_images
from torch_featviz.model.labels import image_of
from torch_featviz.model.reading import read_items, unread, warn_of
from torch_featviz.warn import warn

from .images import formats
from .marks import draw_mark

Split = Literal["train", "valid", "test"]
SPLITS: dict[str, range] = {"train": range(1700), "valid": range(1700, 1850), "test": range(1850, 2000)}
Transform = Callable[[Image.Image], Any]
T = TypeVar("T")


class XO(Displayed, Dataset[tuple[Tensor, int]]):
    """A data set of hand-drawn circles (0) and crosses (1), each `1 116 116` float32 in [0, 1], drawn on first use.

    Args:
        split: `"train"` (1,700), `"valid"` or `"test"` (150 each); half of each are circles.
        seed: seed of the 2,000 drawings.
    Raises:
        OptionError: no such split, or a negative seed.
    Example:
        >>> image, label = XO("test")[0]
        >>> image.shape, label
        (torch.Size([1, 116, 116]), 0)
    """

    classes = ("circle", "cross")

    @gated
    def __init__(self, split: Split = "train", seed: int = 0) -> None:
        if not 0 <= seed < 2**63:
            raise OptionError(f"seed must be 0 or above and below 2**63, got {seed}.")
        self.split, self.seed = split, seed
        self._drawn: dict[int, Tensor] = {}

    def __repr__(self) -> str:
        return f"XO({self.split!r}, seed={self.seed}: {len(self):,} drawings)"

    def __len__(self) -> int:
        return len(SPLITS[self.split])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        number = SPLITS[self.split][index]
        if number not in self._drawn:
            pixels = draw_mark(number % 2, np.random.default_rng((self.seed, number)))
            self._drawn[number] = torch.from_numpy(pixels)[None]
        return self._drawn[number].float() / 255, number % 2


class ImageFiles(Displayed, Dataset[Tensor]):
    """A data set of all images in a folder and its subfolders, in the order of their paths, preprocessed.

    Hidden and empty files, folders that cannot be read, and formats that `read_image` refuses are left out, with one
    warning. Whether an image is whole is seen when it is read: a corrupt one raises FileError, and a pass over the data
    (`top_patches`, `zoo.evaluate`, `channel_stats`) leaves it out.

    Args:
        folder: the folder; files are chosen by their suffix.
        preprocess: from the path of an image to `1 c h w`, such as `card.preprocess`.
    Attributes:
        paths: of the images.
        left_out: paths of the others, each with the reason.
    Raises:
        FileError: no such folder, or no image in it.
    """

    @gated
    def __init__(self, folder: str | Path, preprocess: Callable[[Path], Tensor]) -> None:
        root = Path(folder)
        kinds = {end: kind for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
        self.paths, self.left_out = _sorted_out(root, kinds)
        if not self.paths:
            told = f": {_told(root, self.left_out)}" if self.left_out else ""
            raise FileError(f"{str(root)!r} has no images{told}; choose a folder with PNG, JPEG or similar files.")
        if self.left_out:
            warn(f"{str(root)!r}: {len(self.left_out):,} left out: {_told(root, self.left_out)}")
        self.preprocess = preprocess
        self._root = root

    def __repr__(self) -> str:
        return f"ImageFiles({shortened(str(self._root), 120)!r}: {len(self):,} images)"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.preprocess(self.paths[index])[0]


def _sorted_out(root: Path, kinds: dict[str, str]) -> tuple[list[Path], dict[Path, str]]:
    """The images below a folder, in order; and what is none, with the reason."""
    paths, left_out = [], {}

    def closed(error: OSError) -> None:
        left_out[Path(error.filename)] = error.strerror or "cannot be read"

    for folder, _, names in os.walk(root, onerror=closed) if os.path.isdir(root) else ():
        for path in (Path(folder, name) for name in names):
            kind = kinds.get(path.suffix.lower())
            if kind is None:
                continue
            if why := _unfit(path, path.relative_to(root), kind):
                left_out[path] = why
            else:
                paths.append(path)
    return sorted(paths), dict(sorted(left_out.items()))


def _unfit(path: Path, below: Path, kind: str) -> str:
    """Why a file is left out, if it is."""
    if any(part.startswith(".") for part in below.parts):
        return "hidden"
    if kind not in formats():
        return f"{kind} is not read"
    try:
        status = path.stat()
    except OSError as error:
        return error.strerror or "cannot be read"
    if not stat.S_ISREG(status.st_mode):
        return "no file"
    return "" if status.st_size else "empty"


def _told(root: Path, left_out: dict[Path, str]) -> str:
    """The first three, by their names below the folder."""
    few = [f"{shortened(str(path.relative_to(root)), 80)!r} ({why})" for path, why in [*left_out.items()][:3]]
    return ", ".join(few) + (", ..." if len(left_out) > 3 else "")


@gated
def write_image_folder(root: str | Path, seed: int = 0) -> Path:
    """Write all XO drawings as `root/split/class/NNNN.png`, for `torchvision.datasets.ImageFolder`.

    Args:
        root: a new folder; it appears only when it is complete.
        seed: as for `XO`.
    Raises:
        FileError: `root` exists, or cannot be written.
        OptionError: a negative seed.
    """
    root = Path(root)
    if "\0" in str(root):
        raise FileError(f"cannot write {str(root)!r}: embedded null byte.")
    if os.path.exists(root):
        raise FileError(f"{str(root)!r} exists already; choose a new folder.")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as aside:
            whole = Path(aside) / root.name
            for split in get_args(Split):
                _write_split(whole / split, XO(split, seed))
            whole.rename(root)
    except OSError as error:
        raise FileError(f"cannot write {str(root)!r}: {error}.") from error
    return root


def _write_split(folder: Path, marks: XO) -> None:
    for name in marks.classes:
        (folder / name).mkdir(parents=True)
    for i in range(len(marks)):
        image, label = marks[i]
        pixels = (image[0] * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / marks.classes[label] / f"{i:04}.png")


@gated
def augment_marks(images: Tensor) -> Tensor:
    """Augment drawings, a batch at a time: `b c h w -> b c h w`, with torch's own generator.

    Each is rotated by quarter turns, mirrored, stretched, sheared, shifted, and sometimes inverted. New background
    continues the values at the border.

    Raises:
        DtypeError: `images` is no tensor of floats.
        ShapeError: it is empty, or has another number of axes.
    """
    check_images(images)
    b = len(images)
    images = torch.rot90(images, int(torch.randint(4, (), device="cpu")), (2, 3))
    images = images.flip(3) if torch.rand((), device="cpu") < 0.5 else images
    turn, slant = _between(0.2, b), _between(0.16, b)
    zoom = torch.exp(0.2 + _between(0.34, b))[:, None]
    cos, sin = torch.cos(turn), torch.sin(turn)
    spin = torch.stack([cos, -sin, sin, cos], 1).view(b, 2, 2)
    shape = torch.diag_embed(zoom * torch.exp(_between(0.17, b, 2)))
    shape[:, 0, 1] = slant
    move = _between(1, b, 2) * (zoom - 1).clamp(min=0.08)
    frame = torch.cat([spin @ shape, move[:, :, None]], 2)
    grid = F.affine_grid(frame.to(images), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    flipped = (torch.rand(b, 1, 1, 1, device="cpu") < 0.15).to(images)
    return images + flipped * (1 - 2 * images)


def _between(reach: float, *shape: int) -> Tensor:
    return (2 * torch.rand(shape, device="cpu") - 1) * reach


@gated
def cifar10(
    root: str | Path = "data", *, train: bool = True, download: bool = False, transform: Transform | None = None
) -> Dataset[Any]:
    """CIFAR-10 from torchvision: `3 32 32` in [0, 1], and a label below 10.

    Raises:
        WeightsError: the files are missing and cannot or must not be downloaded.
    """
    return _torchvision_data("CIFAR10", root, train, download, transform)


@gated
def mnist(
    root: str | Path = "data", *, train: bool = True, download: bool = False, transform: Transform | None = None
) -> Dataset[Any]:
    """MNIST from torchvision: `1 28 28` in [0, 1], and a label below 10.

    Raises:
        WeightsError: the files are missing and cannot or must not be downloaded.
    """
    return _torchvision_data("MNIST", root, train, download, transform)


def _torchvision_data(
    name: str, root: str | Path, train: bool, download: bool, transform: Transform | None
) -> Dataset[Any]:
    from torchvision import datasets, transforms  # type: ignore[import-untyped]  # noqa: PLC0415  slow to import

    try:
        data: Dataset[Any] = getattr(datasets, name)(root, train, transform or transforms.ToTensor(), download=download)
        return data
    except (RuntimeError, OSError) as error:
        raise WeightsError(
            f"no {name} in {str(root)!r}: {error}; pass download=True if there is a network, or copy the files there."
        ) from error


@gated
def channel_stats(data: Dataset[Any] | Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation of each channel over all pixels, in one pass and in float64: `c` and `c`.

    An image of a data set whose file cannot be read (an OSError) is left out, with a warning.

    Args:
        data: a data set of images `c h w`, or a loader of batches `b c h w`; labels are ignored.
    Returns:
        Mean and standard deviation; both NaN for a channel with NaN or infinities.
    Raises:
        ShapeError: no images, another number of axes, or the number of channels changes.
        DtypeError: an item is not a tensor.
    Example:
        >>> channel_stats([torch.tensor([0.0, 2.0]).view(1, 1, 2)])
        (tensor([1.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    moments, channels, left_out = Moments(), 0, dict[int, str]()
    for images in _images(data, left_out):
        channels = channels or images.shape[1]
        if images.shape[1] != channels:
            raise ShapeError(f"every image must have {channels} channels, got one with {images.shape[1]}.")
        moments.update(images)
    if moments.empty:
        told = f" ({unread(data, left_out)})" if left_out else ""
        raise ShapeError(f"data must hold at least one image, got none{told}.")
    warn_of(left_out)
    broken = moments.nan + moments.inf > 0
    return moments.mean.where(~broken, torch.nan), moments.std.where(~broken, torch.nan)


def _images(data: Dataset[Any] | Iterable[Any], left_out: dict[int, str]) -> Iterator[Tensor]:
    """Each item as `b c h w` float64."""
    for _, item in read_items(data, left_out):
        image = image_of(item)
        if not isinstance(image, Tensor):
            raise DtypeError(f"items must be tensors, got {type(image).__name__}; pass transform=to_tensor.")
        if image.ndim not in (3, 4) or not image.numel():
            raise ShapeError(f"images must be 'c h w' or 'b c h w' and not empty, got shape {tuple(image.shape)}.")
        yield (image[None] if image.ndim == 3 else image).double()
