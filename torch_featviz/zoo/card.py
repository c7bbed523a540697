"""What has to be known about a net to use it: how to build it, feed it, and where to look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from torch_featviz.displayed import Displayed
from torch_featviz.errors import FeatvizError, OptionError, ShapeError, WeightsError
from torch_featviz.model.answer import KINDS, Kind

from .images import as_given, as_unit, check_strip, open_image, to_size
from .weights import State, fetch_state, put_state, read_state


@dataclass(frozen=True, repr=False)
class ModelCard(Displayed):
    """A net, its input and its layers, in one frozen record.

    Args:
        name: as a person would say it.
        build: makes the net with random weights; call it as `card.build()`.
        input_size: channels, height, width; with 0 for the last two, images are taken in the size they have.
        classes: class names in the order of the outputs.
        mean: of the unit-range input, one value per channel or one for all.
        std: likewise; the net is fed `(x - mean) / std`.
        low: name of an early layer worth looking at.
        middle: of a middle one.
        high: of a late one.
        weights: address of a trained state dict, or the path of its file, or what returns it.
        resize: shorter side before the middle is cut out; `None` squeezes the whole picture to size.
        rename: turns a key of an old weights file into the net's own.
        answer: what the outputs are: `"logits"` or `"probabilities"` of classes of which one is true, `"label_logits"`
            or `"label_probabilities"` of labels that may be true together, or `"figures"`; default: told by their
            values and how the net makes them.
        transform: the published one, instead of `resize`, `mean` and `std`: from a PIL image, or `b c h w` bytes or
            floats in [0, 1], to what the net is fed; such as `ResNet18_Weights.DEFAULT.transforms()` of torchvision.
    Raises:
        OptionError: sizes, statistics or an answer that cannot be.
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
        given = self.input_size
        if len(given) != 3 or given[0] < 1 or (min(given) < 1 and given[1:] != (0, 0)):
            raise OptionError(f"input_size must be (channels, height, width), got {self.input_size}.")
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.input_size[0]):
                raise OptionError(f"{what} must have 1 or {self.input_size[0]} values, got {values}.")
        if self.answer is not None and self.answer not in KINDS:
            raise OptionError(f"answer must be one of {', '.join(KINDS)}, got {self.answer!r}.")
        if min(self.std) <= 0:
            raise OptionError(f"std must be above 0, got {self.std}.")

    def load(self, path: str | Path | None = None) -> nn.Module:
        """The net with trained weights, in eval mode.

        Args:
            path: a `.pt`, `.pth` or `.safetensors` state dict; without it the card's own are downloaded.
        Raises:
            WeightsError: there is neither file nor address nor network, or the weights do not fit.
            FileError: there is no such file.
        """
        if path is None and self.weights is None:
            raise WeightsError(f"{self.name!r} has no published weights; train it, or pass a file: load('w.pt').")
        source = self.weights if path is None else Path(path)
        if callable(source):
            state = source()
        else:
            state = read_state(source) if isinstance(source, Path) else fetch_state(source or "", self.name)
        if self.rename is not None:
            state = {self.rename(key): value for key, value in state.items()}
        model = self.build()
        put_state(model, state, self.name)
        return model.eval()

    def preprocess(self, image: Tensor | Image.Image | str | Path) -> Tensor:
        """What the net is fed, normalised `b c h w`, out of an image: by the published transform, where there is one.

        Args:
            image: a file, a PIL image, or a tensor `c h w` or `b c h w`, of bytes or of floats in [0, 1].
        Raises:
            FileError: there is no such file, or it is no image.
            DtypeError: anything else.
            ShapeError: another rank, empty, too thin, or channels that cannot become the net's; or the transform makes
                another size than `input_size`.
            OptionError: floats outside [0, 1].
        """
        if isinstance(image, (str, Path)):
            opened = open_image(image)
            try:
                return self.preprocess(opened)
            except FeatvizError as error:
                raise type(error)(f"{str(image)!r}: {error}") from error
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
                f"the transform of {self.name!r} makes {tuple(fed.shape[1:])}, and its input_size is "
                f"{self.input_size}; change both."
            )
        return fed

    def normalize(self, images: Tensor) -> Tensor:
        """Unit range to the net's range: `(x - mean) / std`, for `c h w` or `b c h w`.

        Raises:
            ShapeError: another rank or channel count than the net's.
        """
        mean, std = self._statistics(images)
        return (images - mean) / std

    def denormalize(self, images: Tensor) -> Tensor:
        """The net's range back to unit range: `x * std + mean`, for `c h w` or `b c h w`.

        Raises:
            ShapeError: another rank or channel count than the net's.
        """
        mean, std = self._statistics(images)
        return images * std + mean

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        channels = self.input_size[0]
        if images.ndim not in (3, 4) or images.shape[-3] != channels:
            shape = tuple(images.shape)
            raise ShapeError(f"images must be 'c h w' or 'b c h w' with c = {channels}, got shape {shape}.")
        mean, std = (
            torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return mean, std
