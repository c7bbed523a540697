"""State dicts from a file or an address, and what to say when they cannot be had."""

from __future__ import annotations

import pickle
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
WRAPPERS = ("module.", f"{ORIGINAL}.")


def read_state(path: str | Path) -> State:
    """The tensors of a `.pt`, `.pth` or `.safetensors` file; no code in it is ever run.

    Raises:
        FileError: there is no such file.
        OptionError: another kind of file.
        WeightsError: it is corrupt, wants to run code, or holds no named tensors.
        MissingError: reading it needs safetensors, which is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"no weights file {str(path)!r}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in (".pt", ".pth"):
        raise OptionError(f"weights must be a .pt, .pth or .safetensors file, got {path.name!r}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of the pickle protocol of files it then refuses
            found = torch.load(path, map_location="cpu", weights_only=True)
        return plain(found, path.name)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            raise WeightsError(
                f"{str(path)!r} holds Python objects and not only tensors, and reading it could run code; "
                "save model.state_dict() instead."
            ) from error
        raise WeightsError(f"{str(path)!r} is not a file that torch.save wrote, or is corrupt.") from error
    except (EOFError, RuntimeError, BadZipFile, ValueError, KeyError, struct.error) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{str(path)!r} is not a file that torch.save wrote, or is corrupt.") from error


def _read_safetensors(path: Path) -> State:
    load_file = needs("safetensors.torch", f"reading {path.name!r}", "safetensors").load_file
    try:
        return plain(load_file(path), path.name)
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
            f"download it elsewhere and give the file: load('{file}'), or --weights {file}."
        ) from error


def why(error: BaseException) -> str:
    """The first line of what an error says, or what it is; without the stop at its end."""
    said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return said.rstrip(".,: ")


def plain(found: Any, source: str) -> State:
    """A bare state dict: out of a checkpoint's `state_dict`, without the prefixes that wrappers add.

    Raises:
        WeightsError: it holds no named tensors.
    """
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    named = isinstance(found, Mapping) and found and all(isinstance(v, Tensor) for v in found.values())
    if not named:
        raise WeightsError(f"{source!r} holds no state dict, got {type(found).__name__}; save model.state_dict().")
    state: dict[str, Tensor] = dict(found)
    for prefix in WRAPPERS:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def put_state(model: nn.Module, state: State, name: str) -> None:
    """Load `state` into `model`, every key and shape as it must be.

    Raises:
        WeightsError: keys or shapes differ; a few are named.
    """
    wanted = model.state_dict()
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


def _few(names: Iterable[str]) -> str:
    """The first three."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", ..." if len(ordered) > 3 else "")
