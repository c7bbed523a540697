"""`featviz demo`: train a small network on drawn circles and crosses, then show what it has learnt."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from torch_featviz.choices import FIGURES
from torch_featviz.errors import FileError
from torch_featviz.files import write_whole
from torch_featviz.picture import Picture, Scale
from torch_featviz.printable import say
from torch_featviz.schema import SchemaError, decoded, restored
from torch_featviz.training import Monitor
from torch_featviz.training.history import as_plain
from torch_featviz.zoo import XO, TrainingCurves, card, train_xo
from torch_featviz.zoo.fit import Around
from torch_featviz.zoo.recipe import EPOCHS
from torch_featviz.zoo.xo import CLASSES

from .made import RECORD, Made, digest_of
from .sheets import Learnt, drawings, page, sheets

STATE = "xo_deep.pt"
EVERY = 85  # steps; an epoch
REPORT = "6-how-it-learnt.png"
FILMS = {  # of the layers in which most is learnt
    "5-how-its-maps-grew": ("features.conv3", "maps"),
    "5-how-its-kernels-grew": ("features.conv3", "kernels"),
}
TRAINING = (*(name + end for name in FILMS for end in (".webp", ".png")), REPORT)
SCALES = {  # what fills them when it is learnt; what goes beyond is marked
    "kernels/features.conv1": Scale(symmetric=True, vmax=1.25),
    **{f"kernels/features.conv{n}": Scale(symmetric=True, vmax=0.75) for n in (2, 3)},
    **{f"maps/features.conv{n}": Scale(symmetric=True, vmax=vmax) for n, vmax in ((1, 1.75), (2, 3.0), (3, 3.5))},
}


class Shown(NamedTuple):
    """What a demo showed: the held-out accuracy, and the files that are there."""

    accuracy: float
    files: list[Path]


class _Late:
    """The network, loaded when first asked for: where no file has changed nobody needs it."""

    def __init__(self, kept: Path, seed: int, device: str | torch.device) -> None:
        self._kept, self._seed, self._device = kept, seed, device

    @cached_property
    def learnt(self) -> Learnt:
        model, history = _load(self._kept)
        return Learnt(model.to(self._device), history, self._seed)


def demo(
    out: Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    retrain: bool = False,
    device: str | torch.device = "cpu",
) -> Shown:
    """Train (or load what an earlier run kept), and write all sheets to `out`; results on stdout, progress on stderr.

    All that the network computes is computed on `device`. A file that an earlier run of the same code drew of the same
    network stays as it is.

    Raises:
        FileError: `out` cannot be written to.
    """
    _check_folder(out)
    kept = out / (f"seed{seed}" if epochs is None else f"seed{seed}-epochs{epochs}") / STATE
    if kept.exists() and kept.with_suffix(".json").exists() and not retrain:
        say(
            f"Found the network that an earlier run trained ({kept}), on {device}; --retrain begins anew.",
            file=sys.stderr,
        )
    else:
        _train(kept, seed, EPOCHS if epochs is None else epochs, device)
    late, drawn = _Late(kept, seed, device), kept.parent
    known = (kept, kept.with_suffix(".json"), drawn / "training" / FIGURES, *(drawn / name for name in TRAINING))
    state = digest_of(seed, str(device), files=[path for path in known if path.exists()])
    made = Made(drawn / RECORD, state)
    accuracy = made.accuracy if made.accuracy is not None else late.learnt.result.accuracy
    say(f"Held-out accuracy: {100 * accuracy:.1f} % of {len(XO('test', seed))} drawings that it never saw.")
    makes: dict[str, Callable[[], bytes]] = {
        **{name: partial(_drawn, draw, late) for name, draw in sheets().items()},
        **{name: (drawn / name).read_bytes for name in TRAINING if (drawn / name).exists()},
    }
    files = []
    makes = {**dict(sorted(makes.items())), "atlas.html": partial(_page, late, drawn / "training")}
    for name, make in makes.items():
        files.append(out / name)
        unchanged = "" if made.write(files[-1], make) else " (unchanged)"
        say(f"  {files[-1]}{unchanged}")
    made.keep(accuracy)
    say(_next(files[-1], kept))
    return Shown(accuracy, files)


def _train(kept: Path, seed: int, epochs: int, device: str | torch.device) -> None:
    """Train a network, watched, and keep it with what was drawn of its training."""
    say(f"Training xo_deep on 1,700 drawn circles and crosses (seed {seed}), on {device} ...", file=sys.stderr)
    start = time.perf_counter()
    watched: list[Monitor] = []
    folder = kept.with_name("training")
    kept.unlink(missing_ok=True)  # first: a training that is cut short must not pass for that of these weights
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier training, which is not gone on with
    probe = torch.stack(list(drawings(XO("test", seed)).values()))

    def watch(net: nn.Module) -> Around:
        watched.append(Monitor(net, every=EVERY, probe=probe.to(device), to=folder, scales=SCALES))
        return watched[0].step

    model, history, _ = train_xo(seed, watch=watch, epochs=epochs, device=device)
    say(f"Trained {len(history.seconds)} epochs in {time.perf_counter() - start:.0f} s.", file=sys.stderr)
    watched[0].close()
    _draw_training(watched[0], kept.parent)
    _keep(kept, model, history)


def _draw_training(watch: Monitor, folder: Path) -> None:
    for finding in watch.findings:
        say(f"  found at step {finding.step}: {finding.text}")
    watch.report(title="How it learnt, layer by layer").save(folder / REPORT)
    for name, (layer, of) in FILMS.items():
        film = watch.film(layer, "maps" if of == "maps" else "kernels", names=CLASSES)
        film.save(folder / f"{name}.webp")
        film.save(folder / f"{name}.png")


def _drawn(draw: Callable[[Learnt], Picture], late: _Late) -> bytes:
    return draw(late.learnt).png()


def _page(late: _Late, training: Path) -> bytes:
    return page(late.learnt, training).html.encode()


def _next(page: Path, kept: Path) -> str:
    return f"""
Open {page} in a browser: it walks you through the network, from the pixels to the decision.
Three lines of Python make a sheet of yours:

    import torch, torch_featviz as fv
    model = fv.zoo.card("xo_deep").load("{kept}")
    fv.kernels(model, "features.conv1").save("kernels.png")
"""


def _check_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise FileError(f"cannot write to {out}: {error.strerror}; choose a folder with --out.") from error


def _keep(path: Path, model: nn.Module, history: TrainingCurves) -> None:
    curves = as_plain({name: list(values) for name, values in asdict(history).items()})
    write_whole(path.with_suffix(".json"), json.dumps(curves, allow_nan=False).encode())
    weights = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, weights)
    write_whole(path, weights.getvalue())


def _load(path: Path) -> tuple[nn.Module, TrainingCurves]:
    history = _curves(path.with_suffix(".json"))
    return card("xo_deep").load(path), history


def _curves(file: Path) -> TrainingCurves:
    """The curves of an earlier training.

    Raises:
        FileError: the file holds something else.
    """
    try:
        curves = restored(TrainingCurves, decoded(file.read_bytes()))
        if not curves.train_loss:
            raise SchemaError("a list of one number an epoch, got none", ".train_loss")
    except SchemaError as error:
        raise FileError(f"{str(file)!r} is not what an earlier run wrote: {error}; --retrain begins anew.") from error
    return curves
