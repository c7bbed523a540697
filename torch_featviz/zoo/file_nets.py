"""Load a network from a Python file, `net.py:build`, and report errors of that file in one line."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import torch
from torch import nn

from torch_featviz.errors import DtypeError, FeatvizError, FileError, OptionError

from .card import ModelCard
from .imagenet import landmarks_of
from .weights import why


def file_net(source: str, size: tuple[int, int] | None = None) -> tuple[ModelCard, nn.Module | None]:
    """Load the network of a function in a Python file: its card and the network.

    The file's code runs, with seed 0. It can import files beside it, also relatively.

    Args:
        source: `folder/net.py:build`, where `build` needs no arguments.
        size: height and width of the input, if the function returns a network. Without it images keep their size.
            Inputs are in [0, 1] and have the channels of the first convolution (3 if there is none).
    Returns:
        The card, and the network in evaluation mode; None instead of the network if the function returns a card.
    Raises:
        FileError: no such file, or its code fails; the error names the line.
        OptionError: the file has no such name, the function needs arguments, or `size` is given for a card.
        DtypeError: the function returns something else.
    """
    path, _, name = source.rpartition(":")
    if not path.endswith(".py"):
        raise OptionError(f"{source!r} names no function; write {Path(source).name}:NAME, which returns the model.")
    made = _made(path, name)
    if isinstance(made, ModelCard):
        if size is not None:
            raise OptionError(f"{source!r} returns a ModelCard, which has its own input_size; leave --size out.")
        return made, None
    if not isinstance(made, nn.Module):
        raise DtypeError(f"{source!r} must return an nn.Module or a ModelCard, got {type(made).__name__}.")
    channels = next((layer.in_channels for layer in made.modules() if isinstance(layer, nn.Conv2d)), 0) or 3
    low, middle, high = landmarks_of(made)
    known = ModelCard(
        f"{Path(path).name}:{name}",
        build=lambda: made,
        input_size=(channels, *(size or (0, 0))),
        low=low,
        middle=middle,
        high=high,
    )
    with told(path):
        return known, made.eval()


@contextmanager
def told(path: str, says: str = "{}.") -> Iterator[None]:
    """Whatever a person's code in `path` raises, as one line that says where, and `says` what.

    Raises:
        FileError: any error but ours, which pass unless that code called for them.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        line, said = _where(error, _full(path))
        if line is None and isinstance(error, FeatvizError):
            raise
        what = f"{type(error).__name__}: {said}"
        where = f"{path!r}, line {line}" if line else repr(path)
        raise FileError(f"{where}: {says.format(what)}") from error


def _where(error: BaseException, file: str) -> tuple[int | None, str]:
    """The last line of the file that was running, or that cannot be read, and what is wrong."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno, error.msg
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return (lines[-1] if lines else None), why(error)


def _made(path: str, name: str) -> Any:
    """What stands in the file under that name, or what it returns."""
    if not os.path.isfile(path):
        raise FileError(f"no Python file {path!r}.")
    folder = str(Path(_full(path)).parent)
    sys.path.insert(0, folder)
    try:
        with told(path), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _named(_imported(_full(path), folder), name, path)
    finally:
        with suppress(ValueError):  # the file may have taken it out itself
            sys.path.remove(folder)


def _imported(file: str, folder: str) -> ModuleType:
    """The file's code, run as a module of a package that is its folder, under a name that nothing else has."""
    package = ModuleSpec(f"featviz_{uuid4().hex}", None, is_package=True)
    package.submodule_search_locations = [folder]
    module = module_from_spec(ModuleSpec(f"{package.name}.{Path(file).stem.replace('.', '_')}", None, origin=file))
    module.__file__ = file
    sys.modules.update({package.name: module_from_spec(package), module.__name__: module})
    exec(compile(Path(file).read_bytes(), file, "exec"), vars(module))
    return module


def _named(module: ModuleType, name: str, path: str) -> Any:
    """The card or net of that name, or what the function of that name returns."""
    known = {key: value for key, value in vars(module).items() if callable(value) or isinstance(value, ModelCard)}
    if name not in known:
        close = ", ".join(map(repr, get_close_matches(name, known, 3, 0.5)))
        raise OptionError(f"{path!r} has no function {name!r}; close: {close or 'none'}.")
    found = known[name]
    if isinstance(found, (nn.Module, ModelCard)):
        return found
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise OptionError(
            f"{path!r}{_line_of(found, path)}: {name} needs arguments ({why(error)}); choose one that needs none."
        ) from None
    except ValueError:  # not everything tells what it takes; the call will
        pass
    return found()


def _line_of(found: Any, path: str) -> str:
    with suppress(OSError, TypeError):
        if inspect.getsourcefile(found) == _full(path):
            return f", line {inspect.getsourcelines(found)[1]}"
    return ""


def _full(path: str) -> str:
    return str(Path(path).absolute())
