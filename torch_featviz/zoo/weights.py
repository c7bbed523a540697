"""State dicts from a file or a URL, and clear errors if they cannot be loaded."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_featviz.displayed import shortened
from torch_featviz.errors import FileError, OptionError, WeightsError
from torch_featviz.optional import needs
from torch_featviz.torch_private import ORIGINAL

State = Mapping[str, Tensor]
SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".bin")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_WRAPPED = re.compile(r"(?:module\.)*")
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
    if not os.path.isfile(path):  # of which no name is an error, however long
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
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            kind = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f" ({kind[1]})" if kind else ""
            raise WeightsError(
                f"{str(path)!r} holds Python objects{what} not only tensors, and reading it could run code; "
                "save model.state_dict() instead."
            ) from error
        raise WeightsError(f"{str(path)!r} is not a file that torch.save wrote, or is corrupt.") from error
    except Exception as error:  # a garbled file makes the reader fail in any way
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
    except WeightsError:
        raise
    except Exception as error:  # of the network, or of the reader
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
    names = {name: name.replace(f"{ORIGINAL}.", "") for name in state}
    outer = min(match.end() for name in names.values() if (match := _WRAPPED.match(name)))
    return renamed(state, lambda name: names[name][outer:], source)


def renamed(state: State, rename: Callable[[str], str], source: str) -> State:
    """The same tensors under other names.

    Raises:
        WeightsError: two tensors would have one name.
    """
    names = {name: rename(name) for name in state}
    if len(set(names.values())) < len(names):
        twice = [name for name, count in Counter(names.values()).items() if count > 1]
        raise WeightsError(f"{source!r} holds several tensors of one name: {_few(twice)}; save one of each.")
    return {names[name]: value for name, value in state.items()}


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
    """Load `state` into `model`: every key, shape and kind as it must be, all values finite; else nothing is loaded.

    Of a module around the model, as a LightningModule whose `self.model` it is, the model's part is taken. Floats of
    16, 32 and 64 bits are converted to the model's.

    Raises:
        WeightsError: keys, shapes or kinds of numbers differ, or values are NaN or infinite, a few are named; or
            several parts have the model's keys.
    """
    if not _is_state(state) and state:
        raise WeightsError(f"weights for {name!r} must be tensors by name; pass model.state_dict().")
    wanted = model.state_dict()
    state = _part(state, wanted, name)
    missing, extra = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    faults: dict[str, list[str]] = {"missing": [*missing], "unexpected": [*extra]}
    parameters = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    for key in wanted.keys() & state.keys():
        if fault := _fault(state[key], wanted[key], key in parameters):
            faults.setdefault(fault[0], []).append(f"{key} {fault[1]}")
    if told := "; ".join(f"{len(found)} {what}: {_few(found)}" for what, found in faults.items() if found):
        raise WeightsError(f"weights do not fit {name!r}: {told}.")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # of a module that loads in a way of its own
        raise WeightsError(f"weights do not fit {name!r}: {why(error)}.") from error


def _fault(value: Tensor, wanted: Tensor, parameter: bool) -> tuple[str, str] | None:
    """What is wrong with a tensor, in general and in particular."""
    if not isinstance(wanted, Tensor) or is_lazy(wanted):
        return None
    kinds = f"{_kind(value)} for {_kind(wanted)}"
    if value.is_nested != wanted.is_nested:  # before the shape, which nested ones do not have
        return "of another kind", kinds
    if value.shape != wanted.shape:
        return "of another shape", f"{tuple(value.shape)} for {tuple(wanted.shape)}"
    if value.is_meta:
        return "without values", "on the meta device"
    if value.layout != wanted.layout or not _converts(value, wanted.dtype):
        return "of another kind", kinds + "; save value.to_dense()" * (value.layout != wanted.layout)
    return _not_finite(value, wanted, parameter)


def _not_finite(value: Tensor, wanted: Tensor, parameter: bool) -> tuple[str, str] | None:
    """Whether a tensor holds NaN or infinite values, or values that the model's type cannot hold."""
    if value.layout != torch.strided or not (value.is_floating_point() or value.is_complex()):
        return None
    broken = ~_wide(value.to(wanted.dtype)).isfinite()
    if not parameter and not wanted.is_meta:  # as a mask has, where the model makes it so
        broken &= value != wanted.to(value.device)
    if count := int(broken.sum()):
        told = "" if bool((~_wide(value).isfinite()).any()) else f" as {_kind(wanted)}"
        return "not finite", f"({count} of {value.numel()} values{told})"
    return None


def _converts(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether values are the same numbers in this type, but for the digits of floats."""
    if value.dtype in _WHOLE and dtype in _WHOLE:
        return torch.equal(value.to(dtype).to(value.dtype), value)
    return value.dtype == dtype or (value.dtype in _FLOATS and dtype in _FLOATS)


def _wide(value: Tensor) -> Tensor:
    """Floats of 8 bits in a type of which everything can be computed."""
    return value if value.dtype in _FLOATS or value.is_complex() else value.float()


def _kind(tensor: Tensor) -> str:
    """Its type and layout in a word or two."""
    layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    return str(tensor.dtype).removeprefix("torch.") + (f" {layout}" if layout != "strided" else "")


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
    ordered = sorted(shortened(str(name), 160) for name in names)
    return ", ".join(ordered[:3]) + (", ..." if len(ordered) > 3 else "")
