"""The sheets of a demo, each named by the question that it answers; what comes first is what one would show another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torch_featviz import views
from torch_featviz.atlas import Atlas, atlas
from torch_featviz.capture import Activations
from torch_featviz.choices import FIGURES
from torch_featviz.inspect import activations
from torch_featviz.model.answer import answer_of
from torch_featviz.model.inputs import Inputs, device_of
from torch_featviz.picture import Picture
from torch_featviz.survey import top_patches
from torch_featviz.zoo import XO, Evaluation, TrainingCurves, card, evaluate
from torch_featviz.zoo.xo import CLASSES

METHODS = ("gradcam", "integrated_gradients", "occlusion")
_BORDER, _DARK, _FAINT = 16, 0.75, 0.35  # pixels, and how much darker than paper


class Learnt:
    """The network that was trained, and what several sheets need of it: each is computed when first asked for.

    Args:
        model: in eval mode, on its device.
        history: of its training.
        seed: of the drawings.
    """

    def __init__(self, model: nn.Module, history: TrainingCurves, seed: int) -> None:
        self.model, self.history, self.test = model, history, XO("test", seed)

    @cached_property
    def result(self) -> Evaluation:
        """How it does on drawings that it never saw."""
        return evaluate(self.model, DataLoader(self.test, batch_size=150))

    @cached_property
    def drawn(self) -> dict[str, Tensor]:
        """One of these of each class, where the network is."""
        first = drawings(self.test)
        return {name: image.to(device_of(self.model)) for name, image in first.items()}

    @cached_property
    def batch(self) -> Tensor:
        """The same as a batch."""
        return torch.stack(list(self.drawn.values()))

    @cached_property
    def paper(self) -> Tensor:
        """What is there where nothing is drawn: not 0, which would be ink."""
        return self.batch.flatten(1).median(1).values[:, None, None, None]

    @cached_property
    def acts(self) -> Activations:
        """What each ReLU makes of them."""
        return activations(self.model, Inputs(self.batch), nn.ReLU)


def drawings(data: XO) -> dict[str, Tensor]:
    """Of each class the first drawing that is dark and in the middle; without one, the first."""
    chosen = {}
    for k, name in enumerate(CLASSES):
        images = [image for image, label in map(data.__getitem__, range(len(data))) if label == k]
        chosen[name] = next(filter(_is_clear, images), images[0])
    return chosen


def _is_clear(image: Tensor) -> bool:
    """Whether there is ink, all of it well within the border; `1 h w`."""
    ink = image.median() - image
    inner = ink[:, _BORDER:-_BORDER, _BORDER:-_BORDER]
    return bool(inner.max() > _DARK) and int((ink > _FAINT).sum()) == int((inner > _FAINT).sum())


def sheets() -> Mapping[str, Callable[[Learnt], Picture]]:
    """What draws each sheet, by its file's name."""
    levels = ("low", "middle", "high")
    layers = {n: getattr(card("xo_deep"), level) for n, level in enumerate(levels, 1)}
    return {
        "1-why-it-decided.png": _why,
        "2-what-excites-conv3.png": _exciting,
        **{f"3-what-conv{n}-sees.png": partial(_seen, n, level) for n, level in enumerate(levels, 1)},
        **{f"4-layer-by-layer-{name}.png": partial(_through, name) for name in CLASSES},
        "7-how-well-it-does.png": _progress,
        "7-what-it-mixes-up.png": lambda learnt: views.confusion(learnt.result.confusion, CLASSES),
        "7-where-it-was-unsure.png": _unsure,
        **{f"8-kernels-of-conv{n}.png": partial(_kernels, layer) for n, layer in layers.items()},
        "9-what-it-was-asked.png": _asked,
    }


def page(learnt: Learnt, training: Path) -> Atlas:
    """The page on which all of it can be walked through."""
    return atlas(
        learnt.model,
        learnt.batch,
        card=card("xo_deep"),
        names=CLASSES,
        loader=DataLoader(learnt.test, batch_size=50),
        methods=METHODS,
        baselines=learnt.paper,
        training=training if (training / FIGURES).exists() else None,
    )


def _why(learnt: Learnt) -> Picture:
    title = "Why a circle is a circle, and a cross a cross: what speaks for it (red) and against it (blue)"
    return views.attributions(
        learnt.model, learnt.batch, methods=METHODS, classes=CLASSES, baselines=learnt.paper, title=title
    )


def _exciting(learnt: Learnt) -> Picture:
    best = top_patches(learnt.model, DataLoader(learnt.test, batch_size=50), card("xo_deep").high)
    return views.exemplars(best, title="conv3: what moves each channel most in drawings it never saw")


def _seen(number: int, level: str, learnt: Learnt) -> Picture:
    maps = dict(zip(learnt.drawn, learnt.acts[f"features.relu{number}"], strict=True))
    title = f"{level.capitalize()} level: what conv{number} (after ReLU) makes of a circle and a cross"
    return views.feature_maps(maps, title=title)


def _through(name: str, learnt: Learnt) -> Picture:
    title = f"A {name}, layer by layer: mean over channels"
    return views.overview(learnt.model, learnt.drawn[name][None], title=title)


def _progress(learnt: Learnt) -> Picture:
    lines = {name: list(values) for name, values in asdict(learnt.history).items() if name != "seconds"}
    return views.curves(lines, title="Training, epoch by epoch")


def _unsure(learnt: Learnt) -> Picture:
    logits = learnt.result.logits
    hard = answer_of(logits, len(logits)).values.amax(1).argsort()[:6].tolist()
    images, truth = torch.stack([learnt.test[i][0] for i in hard]), [learnt.test[i][1] for i in hard]
    title = "The answers it was least sure of"
    return views.predictions(images, logits[hard], CLASSES, k=2, targets=truth, title=title)


def _kernels(layer: str, learnt: Learnt) -> Picture:
    return views.kernels(learnt.model, layer)


def _asked(learnt: Learnt) -> Picture:
    return views.samples(learnt.test, n=10, title="Drawn circles and crosses it never saw")
