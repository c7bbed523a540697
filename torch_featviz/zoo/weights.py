"""State dicts from a file or a URL, and clear errors if they cannot be loaded."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from torch_featviz.errors import FileError, OptionError, WeightsError
from torch_featviz.optional import needs
from torch_featviz.torch_private import ORIGINAL

State = Mapping[str, Tensor]
SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".bin")
KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")


def read_state(path: str | Path, key: str | None = None) -> State:
    """The tensors of a file of weights, or of a checkpoint; no code in it is ever run.

    Args:
        path: ends in one of `SUFFIXES`, or in `.safetensors`.
        key: under which a checkpoint holds the state dict; default: the one that it holds. In a safetensors file, names
            begin with it and a point.
    Raises:
        FileError: there is no such file.
        OptionError: another kind of file.
        WeightsError: it is corrupt, wants to run code, or holds no named tensors, or several state dicts.
        MissingError: reading it needs safetensors, which is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"no weights file {str(path)!r}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, key)
    if path.suffix not in SUFFIXES:
        raise OptionError(f"weights must be a {', '.join(SUFFIXES)} or .safetensors file, got {path.name!r}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the pickle protocol of files it then refuses
            found = torch.load(path, map_location="cpu", weights_only=True)
        return plain(found, path.name, key)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            kind = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f" ({kind[1]})" if kind else ""
            raise WeightsError(
                f"{str(path)!r} holds Python objects{what} not only tensors, and reading it could run code; "
                "save model.state_dict() instead."
            ) from error
        raise WeightsError(f"{str(path)!r} is not a file that torch.save wrote, or is corrupt.") from error
    except (EOFError, RuntimeError, BadZipFile, ValueError, KeyError, struct.error) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{str(path)!r} is not a file that torch.save wrote, or is corrupt.") from error


def _read_safetensors(path: Path, key: str | None) -> State:
    """All tensors of a file, which holds no others; of those under a key, their names begin with it and a point."""
    load_file = needs("safetensors.torch", f"reading {path.name!r}", "safetensors").load_file
    try:
        found: Any = load_file(path)
        if key is not None:
            under = {name.removeprefix(f"{key}."): x for name, x in found.items() if name.startswith(f"{key}.")}
            found = {key: under} if under else found
        return plain(found, path.name, key)
    except WeightsError:
        raise
    except Exception as error:  # safetensors has an error class of its own, known only once it is imported
        raise WeightsError(f"{str(path)!r} is not a safetensors file, or is corrupt: {error}.") from error


def fetch_state(url: str, name: str) -> State:
    """The state dict at an address, kept in the torch hub cache.

    Raises:
        WeightsError: there is no network, or what came does not match its checksum.
    """
    try:
        return plain(
            torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True),
            url,
        )
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        file = url.rsplit("/", 1)[-1]
        raise WeightsError(
            f"no weights for {name!r}: tried {url}, got {why(error)}; "
            f"download it elsewhere and pass the file: load('{file}'), or --weights {file}."
        ) from error


def why(error: BaseException) -> str:
    """The first line of what an error says, or what it is; without the stop at its end."""
    said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return said.rstrip(".,: ")


def plain(found: Any, source: str, key: str | None = None) -> State:
    """A bare state dict, out of a checkpoint where it is in one, without the prefixes that wrappers add.

    A checkpoint is a mapping with a state dict under one of `KEYS`, or under any other key if it holds only one.

    Raises:
        WeightsError: it holds no named tensors, or several sets of them.
    """
    state = dict(found if key is None and _is_state(found) else _held(found, source, key))
    state = {name.replace(f"{ORIGINAL}.", ""): value for name, value in state.items()}
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _is_state(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items())
    )


def _held(found: Any, source: str, key: str | None) -> State:
    """The state dict that a checkpoint holds."""
    if not isinstance(found, Mapping) or not found:
        raise WeightsError(f"{source!r} holds no state dict, got {type(found).__name__}; save model.state_dict().")
    states: dict[Any, State] = {name: value for name, value in found.items() if _is_state(value)}
    if key is not None and key not in states:
        raise WeightsError(f"{source!r} holds no state dict under {key!r}, only under {_few(states) or 'no key'}.")
    usual = [name for name in states if name in KEYS or "ema" in str(name).lower().split("_")]
    chosen = [key] if key is not None else usual or list(states)
    if not chosen:
        raise WeightsError(f"{source!r} holds no state dict, only {_few(found)}; save model.state_dict().")
    if len(chosen) > 1:
        several = ", ".join(map(repr, chosen))
        raise WeightsError(f"{source!r} holds several state dicts, {several}; use one: load(path, key={chosen[0]!r}).")
    return states[chosen[0]]


def put_state(model: nn.Module, state: State, name: str) -> None:
    """Load `state` into `model`, every key and shape as it must be.

    Of a module around the model, as a LightningModule whose `self.model` it is, the model's part is taken.

    Raises:
        WeightsError: keys or shapes differ, a few are named; or several parts have the model's keys.
    """
    wanted = model.state_dict()
    state = _part(state, wanted, name)
    missing, extra = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted.keys() & state.keys()
        if wanted[key].shape != state[key].shape
    ]
    faults = (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
    if told := "; ".join(f"{len(found)} {what}: {_few(found)}" for what, found in faults if found):
        raise WeightsError(f"weights do not fit {name!r}: {told}.")
    model.load_state_dict(state)


def _part(state: State, wanted: State, name: str) -> State:
    """All of `state`, or what is below the prefix that makes the model's keys of its own."""
    if not wanted or wanted.keys() & state.keys():
        return state
    first = next(iter(wanted))
    prefixes = [key.removesuffix(first) for key in state if key.endswith(f".{first}")]
    prefixes = [prefix for prefix in prefixes if all(prefix + key in state for key in wanted)]
    if len(prefixes) > 1:
        raise WeightsError(f"weights contain {name!r} several times, under {_few(prefixes)}; save one of them.")
    return {key: state[prefixes[0] + key] for key in wanted} if prefixes else state


def _few(names: Iterable[str]) -> str:
    """The first three."""
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:3]) + (", ..." if len(ordered) > 3 else "")
