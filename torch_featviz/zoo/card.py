"""`ModelCard`: how to build a network, how to prepare its input, and which layers to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from torch_featviz.displayed import Displayed
from torch_featviz.errors import OptionError, ShapeError, WeightsError
from torch_featviz.gate import check_fields, check_floats, gate, gated
from torch_featviz.model.answer import Kind

from .images import as_given, as_unit, check_strip, named, open_image, to_size
from .weights import State, fetch_state, put_state, read_state, renamed


@dataclass(frozen=True, repr=False)
class ModelCard(Displayed):
    """Everything needed to use a network: how to build it, how to prepare its input, its classes, its interesting
    layers.

    Args:
        name: name for people.
        build: a function that returns the network with random weights; call it as `card.build()`.
        input_size: channels, height, width. With height and width 0, images keep their size.
        classes: class names in the order of the outputs.
        mean: mean of inputs in [0, 1], one value per channel or one for all.
        std: standard deviation, likewise; the network takes `(x - mean) / std`.
        low: name of an early layer to look at.
        middle: name of a middle layer to look at.
        high: name of a late layer to look at.
        weights: URL or file of a trained state dict, or a function that returns one.
        resize: length of the shorter side before the centre crop; `None` resizes the whole image to `input_size`.
        rename: maps a key of an old weights file to the network's own key.
        answer: meaning of the outputs: `"logits"` or `"probabilities"` of classes that exclude each other,
            `"label_logits"` or `"label_probabilities"` of independent labels, or `"figures"`. Default: derived from
            their values and the network.
        transform: the published transform, used instead of `resize`, `mean` and `std`: from a PIL image, or from `b c h
            w` bytes or floats in [0, 1], to the network's input; for instance torchvision's
            `ResNet18_Weights.DEFAULT.transforms()`.
    Raises:
        OptionError: a size, a mean, a std or an answer is invalid.
    Example:
        >>> card = ModelCard("tiny", lambda: nn.Conv2d(3, 4, 3), (3, 8, 8), mean=(0.5,), std=(0.25,))
        >>> card.build()(card.preprocess(torch.rand(3, 20, 30))).shape
        torch.Size([1, 4, 6, 6])
    """

    name: str
    build: Callable[[], nn.Module]
    input_size: tuple[int, int, int]
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    low: str = ""
    middle: str = ""
    high: str = ""
    weights: str | Path | Callable[[], State] | None = None
    resize: int | None = None
    rename: Callable[[str], str] | None = None
    answer: Kind | None = None
    transform: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        given = self.input_size
        if len(given) != 3 or given[0] < 1 or (min(given) < 1 and given[1:] != (0, 0)):
            raise OptionError(f"input_size must be (channels, height, width), got {self.input_size}.")
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.input_size[0]):
                raise OptionError(f"{what} must have 1 or {self.input_size[0]} values, got {values}.")
        if min(self.std) <= 0:
            raise OptionError(f"std must be above 0, got {self.std}.")

    @gated
    def load(self, path: str | Path | None = None, *, key: str | None = None) -> nn.Module:
        """Build the network and load trained weights; it is in evaluation mode.

        Args:
            path: a state dict (`.pt`, `.pth`, `.safetensors`), or a checkpoint that holds one under a key such as
                `"net"`, `"model"`, `"state_dict"` or `"model_state_dict"` (`.ckpt`, `.tar`, too). Prefixes of
                `DataParallel`, `torch.compile` and a LightningModule are left out. Default: the weights of the card,
                downloaded if necessary.
            key: the key, if a checkpoint holds several state dicts.
        Raises:
            WeightsError: the card has no weights, they cannot be downloaded or read, or they do not fit the network:
                other names or shapes, other kinds of numbers (int8, complex, sparse), NaN or infinite values.
            FileError: there is no such file.
        """
        if path is None and self.weights is None:
            raise WeightsError(f"{self.name!r} has no published weights; train it, or pass a file: load('w.pt').")
        source = self.weights if path is None else Path(path)
        if callable(source):
            state = source()
        else:
            state = read_state(source, key) if isinstance(source, Path) else fetch_state(source or "", self.name)
        if self.rename is not None:
            state = renamed(state, self.rename, self.name)
        model = self.build()
        put_state(model, state, self.name)
        return model.eval()

    @gate("image")
    def preprocess(self, image: Tensor | Image.Image | str | Path) -> Tensor:
        """Turn an image into the network's input, normalised `b c h w`, by the published transform if the card has one.

        Args:
            image: a file, as `read_image` takes it, a PIL image, or a tensor `c h w` or `b c h w` of bytes or of floats
                in [0, 1].
        Raises:
            FileError: there is no such file, or it is not an image, or has too many pixels.
            DtypeError: another type.
            ShapeError: the wrong number of axes, an empty or too narrow image, or channels that cannot be converted; or
                the transform returns another size than `input_size`.
            OptionError: floats outside [0, 1], or greys of which no range is known, or colours that Pillow does not
                convert.
        """
        if isinstance(image, (str, Path)):
            opened = open_image(image)
            with named(image):
                return self.preprocess(opened)
        channels, *size = self.input_size
        given, sides = as_given(image, channels), (size[0], size[1])
        if self.resize is not None and sides != (0, 0):
            check_strip(given, sides, self.resize)
        if self.transform is None:
            return self.normalize(as_unit(to_size(given, sides, self.resize) if sides != (0, 0) else given))
        with torch.device(given.device if isinstance(given, Tensor) else "cpu"):  # as published ones name none
            fed = self.transform(given)
        fed = fed[None] if fed.ndim == 3 else fed
        if sides != (0, 0) and fed.shape[1:] != self.input_size:
            raise ShapeError(
                f"the transform of {self.name!r} returns {tuple(fed.shape[1:])}, but its input_size is "
                f"{self.input_size}; make them equal."
            )
        return fed

    @gated
    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images in [0, 1]: `(x - mean) / std`, for `c h w` or `b c h w`.

        Raises:
            DtypeError: `images` are no floats.
            ShapeError: the wrong number of axes or channels.
        """
        mean, std = self._statistics(images)
        return (images - mean) / std

    @gated
    def denormalize(self, images: Tensor) -> Tensor:
        """Undo `normalize`: `x * std + mean`, for `c h w` or `b c h w`.

        Raises:
            DtypeError: `images` are no floats.
            ShapeError: the wrong number of axes or channels.
        """
        mean, std = self._statistics(images)
        return images * std + mean

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        check_floats("images", images)
        channels = self.input_size[0]
        if images.ndim not in (3, 4) or images.shape[-3] != channels:
            shape = tuple(images.shape)
            raise ShapeError(f"images must be 'c h w' or 'b c h w' with c = {channels}, got shape {shape}.")
        mean, std = (
            torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return mean, std
