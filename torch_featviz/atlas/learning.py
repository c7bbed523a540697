"""How it learnt, out of a folder that a Monitor wrote, as the page is given it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from torch_featviz.errors import FileError
from torch_featviz.training import History
from torch_featviz.training.frames import KINDS
from torch_featviz.training.history import Finding, read_lines
from torch_featviz.training.report import report, weight_of
from torch_featviz.training.run_folder import pictures

from .pack import Blobs, fair_shares

STEPS = 24  # at most
_PIXELS = 2**26  # of a picture at most
_CURVES = {
    "std": "spread of its values (standard deviation)",
    "zero_share": "share of values that are 0",
    "update_ratio": "update ÷ weight",
    "grad_norm": "norm of the weight's gradient",
}


def put_learning(blobs: Blobs, folder: Path, letters: float) -> tuple[dict[str, Any], list[str]]:
    """Kernels, maps and heatmaps over steps, curves, findings and the report; and what was left out.

    Args:
        blobs: where the pictures go.
        folder: given to a `Monitor` as `to=`.
        letters: that the page may take for it.
    Raises:
        FileError: there is nothing, or something else, in the folder.
    """
    history, found, named = History(), list[Finding](), dict[int, tuple[str, ...] | None]()
    for line in read_lines(folder):
        history.append(line.sample)
        found += line.findings
        named[line.sample.step] = line.pictures
    if not len(history):
        raise FileError(f"{str(folder)!r} holds no sample yet; train until a step was looked at.")
    drawn = report(history, found)
    page = {
        "findings": [{"step": each.step, "kind": each.kind, "text": each.text} for each in found],
        "report": blobs.picture(torch.from_numpy(drawn.numpy()).permute(2, 0, 1), "the report of the training"),
    }
    steps = history.steps
    spread = np.linspace(0, len(steps) - 1, min(STEPS, len(steps))).round().astype(int)
    chosen = [steps[i] for i in dict.fromkeys(spread.tolist())]
    layers = dict.fromkeys(name for sample in history for name in sample.layers)
    films = pictures(folder, {step: named[step] for step in chosen}, KINDS, layers)
    cost = [sum(file.stat().st_size for file in files.values()) for files in films.values()]
    share = fair_shares(cost, int(letters * 3 / 4)) if cost else 0
    whole = {name: files for (name, files), size in zip(films.items(), cost, strict=True) if size <= share}
    page["steps"] = chosen
    page["layers"] = [_film(blobs, name, files, chosen) for name, files in sorted(whole.items())]
    page["curves"] = _curves(history, chosen)
    told = []
    if len(chosen) < len(steps):
        told.append(f"Learning: {len(chosen)} of {len(steps)} steps that were looked at.")
    if gone := [" of ".join(_kind_and_layer(name)) for name in films if name not in whole]:
        told.append(f"Learning: no pictures of {', '.join(gone)}, which would make the page too large.")
    return page, told


def _kind_and_layer(name: str) -> tuple[str, str]:
    kind, _, layer = name.partition("/")
    return kind, layer or "(model)"


def _film(blobs: Blobs, name: str, files: dict[int, Path], steps: list[int]) -> dict[str, Any]:
    kind, layer = _kind_and_layer(name)
    frames = [
        blobs.picture(_pixels(files[step]), f"{kind} of {layer} at step {step}") if step in files else None
        for step in steps
    ]
    return {"name": layer, "of": kind, "frames": frames}


def _pixels(file: Path) -> torch.Tensor:
    """`3 h w` of a picture that a Monitor wrote.

    Raises:
        FileError: it is damaged, or larger than any of a Monitor.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes that are refused below
            opened = Image.open(file, formats=["PNG"])
        with opened as image:
            if image.width * image.height > _PIXELS:
                raise Image.DecompressionBombError
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except Image.DecompressionBombError as error:
        raise FileError(
            f"{str(file)!r} has more than {_PIXELS:,} pixels, which no Monitor draws; remove it."
        ) from error
    except Exception as error:  # Pillow has many for what is no picture
        raise FileError(f"cannot read {str(file)!r}: {error}; remove it.") from error


def _curves(history: History, steps: list[int]) -> list[dict[str, Any]]:
    """Figures of each layer, and of its weight, at the steps shown."""
    rows = [i for i, step in enumerate(history.steps) if step in set(steps)]
    layers = list(dict.fromkeys(name for sample in history for name in sample.layers))
    found = []
    for layer in layers:
        for figure, what in _CURVES.items():
            name = layer if figure in ("std", "zero_share") else weight_of(history, layer)
            if name is None:
                continue
            line = history.line(name, figure)
            if any(line[row] is not None for row in rows):  # no optimizer moves what is frozen
                found.append({"layer": layer, "what": what, "values": [line[row] for row in rows]})
    return found
