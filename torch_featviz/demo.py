"""`featviz demo`: train a small network on drawn circles and crosses, then show what it has learnt."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import views
from .atlas import Atlas, atlas
from .errors import FileError, WeightsError
from .files import write_whole
from .inspect import activations
from .model.answer import answer_of
from .model.inputs import Inputs, device_of
from .picture import Picture, Scale
from .survey import top_patches
from .training import Monitor
from .training.history import FIGURES
from .zoo import XO, TrainingCurves, card, evaluate, train_xo
from .zoo.fit import Around
from .zoo.recipe import EPOCHS
from .zoo.xo import CLASSES

STATE = "xo_deep.pt"
METHODS = ("gradcam", "integrated_gradients", "occlusion")
EVERY = 85  # steps; an epoch
TRAINING = ("10-report.png", "10-kernels-conv1.webp", "10-kernels-conv1.png")
SCALES = {f"kernels/features.conv{n}": Scale(symmetric=True, vmax=1.25) for n in (1, 2, 3)}  # they begin within 1


class Shown(NamedTuple):
    """What a demo showed: the held-out accuracy, and the files that it wrote."""

    accuracy: float
    files: list[Path]


def demo(
    out: Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    retrain: bool = False,
    device: str | torch.device = "cpu",
) -> Shown:
    """Train (or load what an earlier run kept), and write all sheets to `out`; results on stdout, progress on stderr.

    All that the network computes is computed on `device`.

    Raises:
        FileError: `out` cannot be written to.
    """
    _check_folder(out)
    files = []
    kept = out / (f"seed{seed}" if epochs is None else f"seed{seed}-epochs{epochs}") / STATE
    again = kept.exists() and kept.with_suffix(".json").exists() and not retrain
    if again:
        model, history = _load(kept)
        print(
            f"Loaded the network that an earlier run trained ({kept}), on {device}; --retrain begins anew.",
            file=sys.stderr,
        )
    else:
        print(f"Training xo_deep on 1,700 drawn circles and crosses (seed {seed}), on {device} ...", file=sys.stderr)
        start = time.perf_counter()
        watched: list[Monitor] = []
        folder = kept.with_name("training")
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier training, which is not gone on with

        def watch(net: nn.Module) -> Around:
            watched.append(Monitor(net, every=EVERY, to=folder, scales=SCALES))
            return watched[0].step

        epochs = EPOCHS if epochs is None else epochs
        model, history, _ = train_xo(seed, watch=watch, epochs=epochs, device=device)
        print(f"Trained {len(history.seconds)} epochs in {time.perf_counter() - start:.0f} s.", file=sys.stderr)
        watched[0].close()
        _draw_training(watched[0], kept.parent)
        _keep(kept, model, history)
    model.to(device)
    test = XO("test", seed)
    result = evaluate(model, DataLoader(test, batch_size=150))
    print(f"Held-out accuracy: {result.accuracy:.1%} of {len(test)} drawings that it never saw.")
    for name, picture in _sheets(model, history, result.confusion, result.logits, test):
        files.append(picture.save(out / name))
        print(f"  {files[-1]}")
    for name in TRAINING:  # of this network's training, which may have been an earlier run's
        if (drawn := kept.with_name(name)).exists():
            files.append(write_whole(out / name, drawn.read_bytes()))
            print(f"  {files[-1]}")
    files.append(_atlas(model, test, kept.with_name("training")).save(out / "atlas.html"))
    print(f"  {files[-1]}")
    print(_next(files[-1], kept))
    return Shown(result.accuracy, files)


def _draw_training(watch: Monitor, folder: Path) -> None:
    for finding in watch.findings:
        print(f"  found at step {finding.step}: {finding.text}")
    watch.report(title="How it learnt, layer by layer").save(folder / TRAINING[0])
    for name in TRAINING[1:]:
        watch.film("features.conv1").save(folder / name)


def _sheets(
    model: nn.Module, history: TrainingCurves, counts: Tensor, logits: Tensor, test: XO
) -> Iterator[tuple[str, Picture]]:
    info = card("xo_deep")
    drawn = _drawn(test)
    yield "01-samples.png", views.samples(test, n=10, title="Drawn circles and crosses it never saw")
    lines = {name: list(values) for name, values in asdict(history).items() if name != "seconds"}
    yield "02-curves.png", views.curves(lines, title="Training, epoch by epoch")
    yield "03-confusion.png", views.confusion(counts, CLASSES)
    hard = answer_of(logits, len(logits)).values.amax(1).argsort()[:6]  # the answers it was least sure of
    images = torch.stack([test[int(i)][0] for i in hard])
    truth = [test[int(i)][1] for i in hard]
    yield (
        "04-least-sure.png",
        views.predictions(images, logits[hard], CLASSES, k=2, targets=truth, title="The answers it was least sure of"),
    )
    for number, layer in enumerate((info.low, info.middle, info.high), 1):
        yield f"05-kernels-conv{number}.png", views.kernels(model, layer)
    batch = torch.stack(list(drawn.values())).to(device_of(model))
    acts = activations(model, Inputs(batch), nn.ReLU)
    for level, number in (("low", 1), ("mid", 2), ("high", 3)):
        maps = dict(zip(drawn, acts[f"features.relu{number}"], strict=True))
        title = f"{level.capitalize()}-level: what conv{number} (after ReLU) makes of a circle and a cross"
        yield f"06-maps-{level}.png", views.feature_maps(maps, scale=Scale(vmin=0), title=title)
    for name, image in zip(drawn, batch, strict=True):
        title = f"A {name}, layer by layer: mean over channels"
        yield f"07-overview-{name}.png", views.overview(model, image[None], title=title)
    title = "Why a circle is a circle, and a cross a cross: what speaks for it (red) and against it (blue)"
    paper = _paper(batch)
    yield "08-why.png", views.attributions(model, batch, methods=METHODS, classes=CLASSES, baselines=paper, title=title)
    best = top_patches(model, DataLoader(test, batch_size=50), info.high)
    title = "conv3: what moves each channel most in drawings it never saw"
    yield "09-units-conv3.png", views.exemplars(best, title=title)


def _atlas(model: nn.Module, test: XO, training: Path) -> Atlas:
    """The page on which all of it can be walked through."""
    images = torch.stack(list(_drawn(test).values())).to(device_of(model))
    return atlas(
        model,
        images,
        card=card("xo_deep"),
        names=CLASSES,
        loader=DataLoader(test, batch_size=50),
        methods=METHODS,
        baselines=_paper(images),
        training=training if (training / FIGURES).exists() else None,
    )


def _drawn(test: XO) -> dict[str, Tensor]:
    """The first drawing of each class."""
    return {name: next(test[i][0] for i in range(len(test)) if test[i][1] == k) for k, name in enumerate(CLASSES)}


def _paper(images: Tensor) -> Tensor:
    """What is there where nothing is drawn: not 0, which would be ink."""
    return images.flatten(1).median(1).values[:, None, None, None]


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
    write_whole(path.with_suffix(".json"), json.dumps(asdict(history)).encode())
    weights = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, weights)
    write_whole(path, weights.getvalue())


def _load(path: Path) -> tuple[nn.Module, TrainingCurves]:
    try:
        fields = json.loads(path.with_suffix(".json").read_text())
        history = TrainingCurves(**{name: tuple(fields[name]) for name in TrainingCurves.__dataclass_fields__})
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{path.with_suffix('.json')} is not what an earlier run wrote; --retrain.") from error
    return card("xo_deep").load(path), history
