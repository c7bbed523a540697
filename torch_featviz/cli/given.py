"""From what was typed to a model, and to what it is shown."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torch_featviz.choices import DEMO, is_file
from torch_featviz.errors import DeviceError, FileError, OptionError, ShapeError
from torch_featviz.model.labels import class_number
from torch_featviz.model.names import known_names
from torch_featviz.model.untouched import evaluating
from torch_featviz.printable import say
from torch_featviz.zoo import ImageFiles, ModelCard, card
from torch_featviz.zoo.file_nets import file_net, told

_DIGITS = 18  # of a class's number


@dataclass(frozen=True)
class Given:
    """The model that a command is about, with its card and the arguments."""

    arguments: Namespace
    card: ModelCard
    model: nn.Module
    device: torch.device
    untrained: bool  # as far as is known

    @property
    def name(self) -> str:
        """What a sheet says the model is."""
        return f"{self.card.name} (untrained)" if self.untrained else self.card.name

    def layer(self, default: str) -> str:
        """The layer asked for, or this one."""
        layer: str = self.arguments.layer or default
        if not layer:
            raise OptionError(f"{self.card.name} does not say where its convolutions are; name a layer with --layer.")
        return layer

    def images(self) -> Tensor:
        """All that --image names, `b c h w`, ready for the model."""
        paths = self.arguments.image
        return self.tried(_together([self.card.preprocess(path)[0] for path in paths]))

    def names(self) -> list[str]:
        """Of the images, each on one line: the files', with their folders where they would be the same without."""
        paths: list[Path] = self.arguments.image
        alike = len({path.name for path in paths}) < len(set(paths))
        return [" ".join((str(path) if alike else path.name).splitlines()) for path in paths]

    def loader(self) -> DataLoader[Tensor]:
        """The images of --data, ready for the model."""
        files = ImageFiles(self.arguments.data, self.card.preprocess)
        self.tried(_readable(files)[None])
        return DataLoader(files, batch_size=32, collate_fn=_together)

    def noise(self, count: int) -> Tensor:
        """So many images of noise, of the size that the model takes."""
        if not self.card.input_size[1]:
            raise OptionError(f"{self.card.name} does not say how large its images are; do so with --size H W.")
        noise = torch.rand(count, *self.card.input_size, generator=torch.Generator().manual_seed(0), device="cpu")
        return self.tried(self.card.normalize(noise))

    def classes(self) -> list[int] | None:
        """Numbers of the classes asked for; None for the one predicted."""
        asked = self.arguments.classes
        return None if asked is None else [_class(name, self.card) for name in asked]

    def tried(self, images: Tensor) -> Tensor:
        """The same images, where the model is, once it is known that a person's own model takes them."""
        images = images.to(self.device)
        if not is_file(self.arguments.model):
            return images
        if self.arguments.size is not None:
            hint = "another --size may help"
        else:
            hint = "see its card's input_size" if self.card.input_size[1] else "--size H W sizes images for it"
        says = f"the model fails on images of shape {tuple(images.shape)} ({{}}); {hint}."
        with told(_file_of(self.arguments.model), says), evaluating(self.model), torch.no_grad():
            self.model(images[:1])
        return images


def given(arguments: Namespace) -> Given:
    """What the arguments name: the model is in eval mode, on the device asked for.

    Raises:
        OptionError, FileError, DtypeError, MissingError, WeightsError: there is no such model, or no such weights.
        DeviceError: there is no such device.
    """
    source, size = arguments.model, arguments.size
    device, untrained = device_given(arguments), arguments.random
    if is_file(source):
        info, model = file_net(source, size and tuple(size))
        if model is None or arguments.weights is not None:
            with told(_file_of(source)):
                model = _begun(arguments, info)
        else:
            untrained = False
    else:
        info = card(source)
        model = _begun(arguments, info)
    return Given(arguments, info, model.to(device), device, untrained)


def device_given(arguments: Namespace) -> torch.device:
    """The device asked for, or else a GPU where there is one, or the CPU.

    Raises:
        OptionError: no device has such a name.
        DeviceError: it is not there.
    """
    name = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"--device is cpu, cuda, cuda:1, mps and the like; got {name!r}.") from None
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(f"--device {name} is not here: {str(error).splitlines()[0]}") from error
    return device


def say_device(on: Given) -> None:
    """On stderr, where all of it was computed."""
    title = f" ({torch.cuda.get_device_name(on.device)})" if on.device.type == "cuda" else ""
    say(f"computed on {on.device}{title}", file=sys.stderr)


def _begun(arguments: Namespace, info: ModelCard) -> nn.Module:
    """A card's model with the weights asked for."""
    if arguments.weights is None and arguments.random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return info.build().eval()
    path: Path | None = arguments.weights
    if path is None and info.weights is None and (path := _of_the_demo(info)) is None:
        raise OptionError(
            f"{info.name!r} has no published weights; give --weights FILE, or --random for an untrained one."
        )
    return info.load(path)


def _of_the_demo(info: ModelCard) -> Path | None:
    """Weights of this model that the latest demo trained, in its folder under the current one; which, is told."""
    found = [path for path in Path(DEMO).glob(f"*/{info.name}.pt") if path.is_file()]
    if not found:
        return None
    latest = max(found, key=lambda path: (path.stat().st_mtime, path))
    say(f"weights: {latest}, which featviz demo trained", file=sys.stderr)
    return latest


def _readable(files: ImageFiles) -> Tensor:
    """The first image of a folder that can be read; if none can, the first error."""
    for number in range(len(files)):
        with suppress(FileError):
            return files[number]
    return files[0]


def _together(images: Sequence[Tensor]) -> Tensor:
    """Images of one size as a batch."""
    sizes = {f"{image.shape[1]}×{image.shape[2]}": None for image in images}
    if len(sizes) > 1:
        raise ShapeError(f"images must be of one size here, got {', '.join([*sizes][:3])}; --size H W sizes them.")
    return torch.stack(list(images))


def _class(name: str, info: ModelCard) -> int:
    """The number of a class, given that or its name."""
    names = known_names((), info)
    number = int(name) if name.isdecimal() and len(name) <= _DIGITS and name not in names else -1
    if number >= 0 and (number < len(names) or not names):
        return number
    return class_number(name, names, info.name)


def _file_of(source: str) -> str:
    return source.rpartition(":")[0]
