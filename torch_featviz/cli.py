"""The `featviz` command: one line from a model's name to a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import __version__, views
from .capture import capture, evaluating
from .demo import demo
from .errors import FeatvizError, LayerError, OptionError
from .explain import METHODS, top_patches
from .picture import Picture
from .zoo import ImageFiles, ModelCard, card, names, read_image


def main(argv: Sequence[str] | None = None) -> int:
    """Run `featviz` with these arguments; 0 when all went well, 1 with a line on stderr when not."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except FeatvizError as error:
        print(f"featviz: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("featviz: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="featviz", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("demo", help="train a small network here and now, and look at what it has learnt")
    run.add_argument("--out", type=Path, default=Path("featviz-demo"), help="folder of the sheets (%(default)s)")
    run.add_argument("--seed", type=int, default=0, help="of the drawings and the weights (%(default)s)")
    run.add_argument("--epochs", type=int, help="train so long, instead of what is enough")
    run.add_argument("--retrain", action="store_true", help="train again where an earlier run kept its network")
    run.set_defaults(run=_demo)

    for name, make, what in (
        ("kernels", _kernels, "the kernels of one layer"),
        ("maps", _maps, "the feature maps that one layer makes of an image"),
        ("overview", _overview, "one map for each layer, first to last"),
        ("units", _units, "the patches of many images that move each channel of a layer most"),
        ("why", _why, "what in an image speaks for and against a class"),
    ):
        view = commands.add_parser(name, help=what, description=f"Draw {what}.")
        view.add_argument("model", metavar="MODEL", help=f"{', '.join(names())}, or torchvision:NAME")
        if name == "units":
            view.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="images, in it or below it")
            view.add_argument("--channels", type=int, nargs="+", metavar="N", help="default: the first 16")
        elif name != "kernels":
            view.add_argument("--image", type=Path, required=True, metavar="FILE", help="what the model is shown")
        if name != "overview":
            default = "last convolution" if name in ("why", "units") else "first convolution"
            view.add_argument("--layer", metavar="NAME", help=f"default: the model's {default}")
        if name == "why":
            view.add_argument(
                "--method", action="append", metavar="NAME", help=f"{', '.join(METHODS)}; may be repeated"
            )
            view.add_argument(
                "--class",
                dest="classes",
                action="append",
                metavar="NAME",
                help="name or number of a class; may be repeated; default: the one predicted",
            )
        if name == "maps":
            view.add_argument("--top", type=int, metavar="N", help="only the N maps with the highest values")
        weights = view.add_mutually_exclusive_group()
        weights.add_argument("--weights", type=Path, metavar="FILE", help="a state dict (.pt, .pth, .safetensors)")
        weights.add_argument("--random", action="store_true", help="untrained: random weights")
        view.add_argument("--out", type=Path, default=Path(f"{name}.png"), metavar="FILE", help="(%(default)s)")
        view.set_defaults(run=_draw, make=make)
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    demo(arguments.out, seed=arguments.seed, epochs=arguments.epochs, retrain=arguments.retrain)


def _draw(arguments: argparse.Namespace) -> None:
    info = card(arguments.model)
    if arguments.random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = info.build().eval()
    else:
        model = info.load(arguments.weights)
    print(arguments.make(arguments, info, model).save(arguments.out))


def _layer(arguments: argparse.Namespace, info: ModelCard) -> str:
    layer = arguments.layer or info.low
    if not layer:
        raise OptionError(f"{info.name} does not say where its kernels are; name a layer with --layer.")
    return str(layer)


def _input(arguments: argparse.Namespace, info: ModelCard) -> Tensor:
    return info.preprocess(read_image(arguments.image))


def _kernels(arguments: argparse.Namespace, info: ModelCard, model: nn.Module) -> Picture:
    return views.kernels(model, _layer(arguments, info))


def _maps(arguments: argparse.Namespace, info: ModelCard, model: nn.Module) -> Picture:
    layer = _layer(arguments, info)
    with evaluating(model), torch.no_grad(), capture(model, layer) as acts:
        model(_input(arguments, info))
    if len(acts) != 1:
        raise LayerError(f"{layer!r} gave {len(acts)} outputs: {', '.join(acts)}; --layer names one that runs once.")
    title = f"{info.name} {layer}: what it makes of {arguments.image.name}"
    return views.feature_maps(next(iter(acts.values()))[0], top=arguments.top, title=title)


def _units(arguments: argparse.Namespace, info: ModelCard, model: nn.Module) -> Picture:
    layer = arguments.layer or info.high
    if not layer:
        raise OptionError(f"{info.name} does not say where its units are; name a layer with --layer.")
    loader = DataLoader(ImageFiles(arguments.data, info.preprocess), batch_size=32)
    best = top_patches(model, loader, layer, progress=sys.stderr.isatty())
    return views.exemplars(best, arguments.channels, to_unit=lambda images: info.denormalize(images).clamp(0, 1))


def _why(arguments: argparse.Namespace, info: ModelCard, model: nn.Module) -> Picture:
    images = _input(arguments, info)
    return views.attributions(
        model,
        images,
        methods=arguments.method or ["gradcam"],
        targets=[_class(name, info) for name in arguments.classes] if arguments.classes else None,
        layer=arguments.layer,
        classes=info.classes,
        to_unit=lambda images: info.denormalize(images).clamp(0, 1),
        title=f"{info.name} on {arguments.image.name}: what speaks for (red) and against (blue)",
    )


def _class(name: str, info: ModelCard) -> int:
    """The number of a class, given that or its name."""
    if name.isdecimal() and int(name) < len(info.classes):
        return int(name)
    if name in info.classes:
        return info.classes.index(name)
    close = ", ".join(map(repr, get_close_matches(name, info.classes, 3, 0.5)))
    raise OptionError(f"{info.name} has no class {name!r}; close: {close or 'none'}. It has {len(info.classes)}.")


def _overview(arguments: argparse.Namespace, info: ModelCard, model: nn.Module) -> Picture:
    return views.overview(model, _input(arguments, info), title=f"{info.name} on {arguments.image.name}")
