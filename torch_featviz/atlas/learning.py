"""How it learnt, out of a folder that a Monitor wrote, as the page is given it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from PIL import Image

from torch_featviz.errors import FileError
from torch_featviz.training import History
from torch_featviz.training.findings import read_findings
from torch_featviz.training.frames import KINDS
from torch_featviz.training.report import report, weight_of

from .pack import Blobs, fair_shares

STEPS = 24  # at most
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
    history = History.load(folder)
    if not len(history):
        raise FileError(f"{str(folder)!r} holds no sample yet; train until a step was looked at.")
    found = read_findings(folder)
    drawn = report(history, found)
    page = {
        "findings": [{"step": each.step, "kind": each.kind, "text": each.text} for each in found],
        "report": blobs.picture(torch.from_numpy(drawn.numpy()).permute(2, 0, 1), "the report of the training"),
    }
    films = {each: sorted(each.glob("step-*.png")) for kind in KINDS for each in sorted((folder / kind).glob("*"))}
    steps = history.steps
    spread = np.linspace(0, len(steps) - 1, min(STEPS, len(steps))).round().astype(int)
    chosen = [steps[i] for i in dict.fromkeys(spread.tolist())]
    cost = [sum(file.stat().st_size for file in files if _step(file) in chosen) for files in films.values()]
    share = fair_shares(cost, int(letters * 3 / 4)) if cost else 0
    whole = {each: files for (each, files), size in zip(films.items(), cost, strict=True) if size <= share}
    page["steps"] = chosen
    page["layers"] = [_film(blobs, each, files, chosen) for each, files in whole.items()]
    page["curves"] = _curves(history, chosen)
    told = []
    if len(chosen) < len(steps):
        told.append(f"Learning: {len(chosen)} of {len(steps)} steps that were looked at.")
    if gone := [f"{each.parent.name} of {unquote(each.name)}" for each in films if each not in whole]:
        told.append(f"Learning: no pictures of {', '.join(gone)}, which would make the page too large.")
    return page, told


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


def _film(blobs: Blobs, folder: Path, files: list[Path], steps: list[int]) -> dict[str, Any]:
    kind, name = folder.parent.name, unquote(folder.name)
    by_step = {_step(file): file for file in files}
    frames: list[dict[str, Any] | None] = []
    for step in steps:
        if step not in by_step:
            frames.append(None)
            continue
        try:
            with Image.open(by_step[step]) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except (OSError, SyntaxError) as error:
            raise FileError(f"cannot read {str(by_step[step])!r}: {error}.") from error
        frames.append(blobs.picture(pixels, f"{kind} of {name} at step {step}"))
    return {"name": name, "of": kind, "frames": frames}


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
