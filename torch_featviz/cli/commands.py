"""What each command does. Results go to stdout; progress, and whatever a person's model prints, to stderr."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from torch_featviz import demo as demonstration
from torch_featviz import views
from torch_featviz.atlas import atlas as make_page
from torch_featviz.bench import overhead
from torch_featviz.errors import OptionError
from torch_featviz.inspect import summary
from torch_featviz.inspect.placed import placed
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.unplaced import unplaced
from torch_featviz.picture import Picture, Sheet
from torch_featviz.printable import say
from torch_featviz.prove import prove as prove_it
from torch_featviz.survey import top_patches
from torch_featviz.training import History
from torch_featviz.training.findings import read_findings
from torch_featviz.training.report import report as draw_report

from .given import Given, device_given, given, say_device


class Saved(Protocol):
    """What a command makes: a picture, or a page."""

    def save(self, path: Path, /) -> Path: ...


def write(make: Callable[[Given], Saved], arguments: Namespace) -> None:
    """Make it of the model that was named, and print where it was written."""
    with redirect_stdout(sys.stderr):
        on = given(arguments)
        path = make(on).save(arguments.out)
    say_device(on)
    say(path)


def demo(arguments: Namespace) -> None:
    """Train a network, and write a folder of sheets."""
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        shown = demonstration.demo(
            arguments.out,
            seed=arguments.seed,
            epochs=arguments.epochs,
            retrain=arguments.retrain,
            device=device_given(arguments),
        )
    if arguments.json:
        say(json.dumps({"accuracy": shown.accuracy, "files": [str(path) for path in shown.files]}))


def layers(arguments: Namespace) -> None:
    """Print the table of a model's layers."""
    arguments.random = True  # without --weights
    with redirect_stdout(sys.stderr):
        on = given(arguments)
        table = summary(on.model, on.noise(1))
    say_device(on)
    say(json.dumps({**table.as_dict(), "model": arguments.model}) if arguments.json else table)


def report(arguments: Namespace) -> None:
    """Draw how a training went, and print where that was written."""
    folder: Path = arguments.folder
    title = f"How it learnt: {folder.resolve().name}"
    say(draw_report(History.load(folder), read_findings(folder), title=title).save(arguments.out))


def bench(arguments: Namespace) -> None:
    """Time a capture, and print the figures."""
    arguments.random = True  # without --weights
    with redirect_stdout(sys.stderr):
        on = given(arguments)
        images = on.noise(arguments.batch)
        say("timing ...", file=sys.stderr)
        with torch.no_grad():
            cost = overhead(on.model, images, arguments.layer)
    if arguments.json:
        asked = {"model": arguments.model, "layer": arguments.layer, "input": list(images.shape)}
        say(json.dumps({**asked, **cost.as_dict()}))
        return
    peak = "not told by this device" if cost.peak_over_bare is None else f"{cost.peak_over_bare / 1e6:+.3g} MB"
    shape = "×".join(map(str, images.shape))
    lines = (
        f"{arguments.model}, {arguments.layer or 'all layers'} ({cost.calls} calls); input {shape}, {cost.device}",
        f"  forward with capture, to the bare one  {cost.ratio}",
        f"  for each of these calls                {cost.per_layer.micro()}",
        f"  memory held                            {cost.bytes_held / 1e6:.3g} MB",
        f"  peak memory, over the bare forward's   {peak}",
        "In brackets: where the true median lies, with 95 % confidence.",
    )
    say("\n".join(lines))


def prove(arguments: Namespace) -> int:
    """Print how each claim came out for a model; 1 where one fails, or none could be checked."""
    with redirect_stdout(sys.stderr):
        on = given(arguments)
        proof = replace(prove_it(on.model, on.images()), model=on.name)
    say_device(on)
    say(json.dumps(proof.to_dict()) if arguments.json else proof)
    return 0 if proof.holds else 1


def look(on: Given) -> Picture:
    """The answer to one image, why, and what the layers make of it."""
    names, paths = on.names(), on.arguments.image
    if len(names) > 1:
        raise OptionError(f"this shows one image at a time, got {len(names)}; give --image once.")
    on.images()  # which says what the model does not take
    return views.look(on.model, paths[0], card=replace(on.card, name=on.name))


def kernels(on: Given) -> Picture:
    """The kernels of one layer."""
    return _named(on, views.kernels(on.model, on.layer(on.card.low)))


def maps(on: Given) -> Picture:
    """The feature maps of one layer, of one or several images."""
    layer, images, names = on.layer(on.card.low), on.images(), on.names()
    found = placed(on.model, Inputs(images), layer)
    title = f"{on.name} {layer}: what it makes of {_said(names)}"
    shown: Any = found.maps[0] if len(names) == 1 else dict(zip(names, found.maps, strict=True))
    per: Literal["kernel", "layer"] = "layer" if on.arguments.one_scale else "kernel"
    sheet = views.feature_maps(shown, top=on.arguments.top, per=per, cmap=on.arguments.cmap, title=title)
    without = unplaced(found.layout, on.model)
    return _noted(sheet, f"{without}: not drawn") if without else sheet


def overview(on: Given) -> Picture:
    """One map for each layer."""
    names = on.names()
    if len(names) > 1:
        raise OptionError(f"this shows one image at a time, got {len(names)}; give --image once.")
    title = f"{on.name} on {names[0]}, layer by layer: mean over channels"
    limit = None if on.arguments.all else 24
    return views.overview(on.model, on.images(), limit=limit, cmap=on.arguments.cmap, title=title)


def why(on: Given) -> Picture:
    """What speaks for a class, and what against it."""
    return views.attributions(
        on.model,
        on.images(),
        methods=on.arguments.method,
        targets=on.classes(),
        layer=on.arguments.layer,
        card=on.card,
        title=f"{on.name} on {_said(on.names())}: what speaks for (red) and against (blue)",
    )


def attention(on: Given) -> Picture:
    """What each head looks at."""
    asked = on.arguments
    return _named(on, views.attention(on.model, on.images(), asked.layer, rollout=asked.rollout, card=on.card))


def units(on: Given) -> Picture:
    """What moves each channel of a layer most."""
    layer = on.layer(on.card.high)
    best = top_patches(on.model, on.loader(), layer, progress=sys.stderr.isatty())
    return _named(on, views.exemplars(best, on.arguments.channels, projection=on.arguments.projection, card=on.card))


def atlas(on: Given) -> Saved:
    """The page."""
    return make_page(
        on.model,
        on.images(),
        card=replace(on.card, name=on.name),
        names=on.names(),
        loader=None if on.arguments.data is None else on.loader(),
        methods=on.arguments.method,
        targets=on.classes(),
        projection=on.arguments.projection,
        training=on.arguments.training,
        megabytes=on.arguments.megabytes,
        progress=sys.stderr.isatty(),
    )


def _named(on: Given, sheet: Picture) -> Picture:
    """The same, titled with the model's name."""
    assert isinstance(sheet, Sheet)
    return replace(sheet, title=f"{on.name}. {sheet.title}")


def _noted(sheet: Picture, note: str) -> Picture:
    """The same with one more line in its legend."""
    assert isinstance(sheet, Sheet)
    return replace(sheet, legend=replace(sheet.legend, notes=(*sheet.legend.notes, note)))


def _said(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} images"
