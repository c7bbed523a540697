"""A first look at a classifier: its answer to one image, why, and what its layers make of it, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from torch_featviz.errors import FeatvizError, LayerError, OptionError, ShapeError
from torch_featviz.explain import Reason, Reasons, Verdict, reasons
from torch_featviz.explain.reasons import answered
from torch_featviz.explain.verdict import CHANCE, lacking, needed
from torch_featviz.gate import gated
from torch_featviz.inspect.layer import Layer
from torch_featviz.inspect.walk import walk
from torch_featviz.model.answer import Answer, Kind
from torch_featviz.model.inputs import Inputs, as_batch, placement
from torch_featviz.model.labels import names_of
from torch_featviz.model.masks import Segmented
from torch_featviz.picture import Legend, Picture, Poster, Scale, Sheet, count, number, rgb, text
from torch_featviz.picture.bounds import LABEL, fitted, named, shrunk
from torch_featviz.picture.contrast import joined
from torch_featviz.picture.images import ValueRange, clipped, unit_images
from torch_featviz.picture.legend import OF_IMAGES
from torch_featviz.picture.overlay import laid
from torch_featviz.views.maps import feature_maps
from torch_featviz.zoo import ModelCard

from .masks import NOTE, outlined
from .stages import ends_of_sizes, spread

METHODS = ("gradcam", "integrated_gradients")
_IN_WORDS = {"gradcam": "Grad-CAM", "integrated_gradients": "integrated gradients"}
_STEPS, _WAY = 3, 7  # of the measure, and of integrated gradients
_BEST, _STAGES = 5, ("Early", "Middle", "Late")
_SIDE, _MAP, _NAME = 400, 112, 400  # pixels, about: of the image, of a map, of a name
_ROW, _FEWEST, _MOST = 960, 8, 12  # pixels of a row of maps, and how many it holds
_UNIT, _CMAP = Scale(symmetric=True, vmin=-1, vmax=1), "RdBu_r"
_BAR, _TRACK = (69, 98, 138), (232, 232, 232)
_MOVED = f"{CHANCE} does"
_BETTER = {  # by whether showing the reddest pixels first, and hiding them first, moves the answer sooner than chance
    (True, True): f"Showing what is red first brings the answer back sooner than {_MOVED}; hiding it first takes the "
    "answer away sooner.",
    (True, False): f"Showing what is red first brings the answer back sooner than {_MOVED}; hiding it first takes the "
    "answer away no sooner.",
    (False, True): f"Hiding what is red first takes the answer away sooner than {_MOVED}; showing it first brings the "
    "answer back no sooner.",
}
_CHANCE = {
    Verdict.NO_BETTER: f"{CHANCE[0].upper()}{CHANCE[1:]} tells as much{{lack}}: do not read anything into the colours.",
    Verdict.WORSE: f"{CHANCE[0].upper()}{CHANCE[1:]} tells more: do not read anything into the colours.",
}


@gated
def look(
    model: nn.Module,
    image: Tensor | Image.Image | str | Path,
    *,
    card: ModelCard | None = None,
    classes: Sequence[str] = (),
    value_range: ValueRange | None = None,
    answer: Kind | None = None,
    additional_forward_args: Any = None,
    keywords: Mapping[str, Any] | None = None,
    title: str = "",
) -> Picture:
    """What a model says of one image, the best heatmap with its verdict, and the strongest maps of three stages.

    A first look that takes fewer than 100 forwards of the image. Grad-CAM and integrated gradients are measured, and
    the better one is shown: over the image, with whether it is better than chance. What a model does not have (maps, a
    gradient) is left out, and the page says so.

    Args:
        model: any that returns a row of scores for an image, or a segmenter; untouched.
        image: a file or a Pillow image, with `card`; or a tensor `c h w` or `1 c h w`, as the model takes it.
        card: of the model: it brings a file to what the model takes, and names the classes.
        classes: names, in the order of the outputs; default the card's.
        value_range: what the values of a tensor mean, as for `attributions`; default the card's, or `"unit"`.
        answer: what the model's scores are, as for `attribute`.
        additional_forward_args: further positional arguments of `forward`, as for `attribute`.
        keywords: keyword arguments of `forward`, likewise.
        title: above everything; default the model and its answer.
    Raises:
        OptionError: a file or Pillow image without a card, no such range, or scores that nobody can tell.
        ShapeError: more than one image, one that the model does not take, or other axes.
        FileError: there is no such file, or it is no image.
        DtypeError, DeviceError: as `attribute`.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
        >>> look(net, torch.rand(3, 8, 8), classes=["cat", "dog"]).numpy().shape[2]
        3
    """
    x = _as_taken(model, image, card)
    units = unit_images(x, value_range, card)
    classes = names_of(classes)
    published = () if card is None else card.classes
    said = card.answer if answer is None and card is not None else answer
    more: dict[str, Any] = {"additional_forward_args": additional_forward_args, "keywords": keywords}
    told: dict[str, Any] = {"names": classes, "published": published}
    known = answered(model, x, said=said, named=bool(classes or published), **told, **more)
    names = known.names(classes, published)
    why, no_why = _why(model, x, known, {"classes": names, **more})
    stages, no_stages = _stages(model, Inputs.of(x, **more))
    counts, hints = clipped(units, value_range, card)
    small, zoom, sizes = fitted(units, 1, 1, goal=_SIDE)
    photo = Sheet(
        rgb(small),
        Legend(counts=counts, notes=(*sizes, *hints), bounds=OF_IMAGES),
        title="What it is shown",
        zoom=zoom,
    )
    top: tuple[Picture, ...] = (photo, _answer(known, names))
    if why is not None:
        top = (Poster(((photo,), (top[1],))), _heatmap(small, zoom, why, names))
    maps = _legend_once([_maps(word, layer) for word, layer in zip(_words(len(stages)), stages, strict=True)])
    best = _ranked(known)[0]
    says, value = "says", _value(known, best)
    if isinstance(known, Segmented):
        says, value = "finds", f"{value} of the pixels"
    name = type(model).__name__ if card is None else card.name
    return Poster(
        (top, *((sheet,) for sheet in maps)),
        title=title or f"{name} {says}: {text.shorten(names[best], 2 * _NAME, 24, bold=True)}, {value}",
        subtitle=". ".join(note for note in (no_why, no_stages) if note),
        head="Where to go on",
        words=_onwards(known, stages, card),
    )


def _as_taken(model: nn.Module, image: Tensor | Image.Image | str | Path, card: ModelCard | None) -> Tensor:
    """The image `1 c h w` as the model takes it, where the model is."""
    if isinstance(image, (Image.Image, str, Path)):
        if card is None:
            kind = "Pillow image" if isinstance(image, Image.Image) else f"file {str(image)!r}"
            raise OptionError(
                f"a {kind} needs card=, which says how the model takes it (size, mean, std); or give a tensor "
                "'c h w' that is ready for the model."
            )
        return card.preprocess(image)[:1].to(**placement(model))
    x = as_batch(image)
    if len(x) != 1:
        raise ShapeError(f"image must be one, 'c h w' or '1 c h w', got shape {tuple(x.shape)}; take image[:1].")
    return x


def _why(model: nn.Module, x: Tensor, known: Answer, more: Mapping[str, Any]) -> tuple[Reasons | None, str]:
    """The heatmaps measured; and in words what could not be made."""
    left_out = ""
    for methods in (METHODS, METHODS[1:]):
        options = {"integrated_gradients": {"n_steps": _WAY}}
        try:
            return reasons(model, x, methods, answer=known, options=options, steps=_STEPS, **more), left_out
        except LayerError:
            left_out = "Grad-CAM is left out: the answer depends on no map of this model"
        except FeatvizError as error:
            return None, f"Heatmaps are left out: {error}".rstrip(".")
    return None, "Heatmaps are left out: no gradient leads to this model's answer"


def _heatmap(small: Tensor, zoom: int, why: Reasons, names: Sequence[str]) -> Sheet:
    """The best one over the image."""
    best = why.ranked[0]
    verdict = best.verdict or Verdict.NO_BETTER
    shares = (best.heatmaps / (best.reach or 1.0)).clamp(-1, 1)
    cells = laid(small, shrunk(shares, max(small.shape[2:]), None), scale=_UNIT, cmap=_CMAP)
    if best.masks is not None:
        cells, zoom = outlined(cells, best.masks, zoom), 1
    name = text.shorten(names[int(why.classes[0, 0])], _NAME, 12)
    others = [f"{_in_words(each)}: {each.worth[0].words[0]}" for each in why.ranked[1:]]
    return Sheet(
        cells[:, 0],
        Legend(
            _UNIT,
            _CMAP,
            count(_UNIT(shares).flatten(0, 1)[:, None]),
            (
                f"{_in_words(best)}: red speaks for {name}, blue against it",
                *([NOTE] if best.masks is not None else []),
                _says(best, verdict),
                _figures(best),
                *others,
            ),
            OF_IMAGES,
        ),
        title=f"Why: {why.none_better or verdict}",
        captions=(best.worth[0].words[0],),
        zoom=zoom,
    )


def _in_words(reason: Reason) -> str:
    return _IN_WORDS[reason.method] + (f" at {reason.where}" if reason.where else "")


def _figures(reason: Reason) -> str:
    worth = reason.worth[0]
    return (
        f"insertion {float(worth.insertion):.2f} (chance {float(worth.random_insertion):.2f}, higher is better); "
        f"deletion {float(worth.deletion):.2f} (chance {float(worth.random_deletion):.2f}, lower is better)"
    )


def _says(reason: Reason, verdict: Verdict) -> str:
    """What the verdict means: of showing and hiding, what the figures bear out."""
    worth = reason.worth[0]
    if held_back := worth.held_back[0]:
        return f"Its figures are better than chance, but it is no reason: {held_back}."
    if verdict is not Verdict.BETTER:
        lack = lacking(float(worth.gain), float(needed(worth.spread)))
        return _CHANCE[verdict].format(lack=f" ({lack})" if lack else "")
    return _BETTER[bool(worth.insertion > worth.random_insertion), bool(worth.deletion < worth.random_deletion)]


def _answer(known: Answer, names: Sequence[str]) -> Sheet:
    """The likeliest classes, each with a bar."""
    values = known.values[0]
    best = _ranked(known)[:_BEST]
    ends = values.abs().max().clamp(min=1e-12) if known.kind == "figures" else values.new_ones(())
    bars = torch.tensor(_TRACK, dtype=torch.uint8, device="cpu")[None, :, None, None].repeat(len(best), 1, 14, _NAME)
    for bar, k in zip(bars, best, strict=True):
        share = float((values[k].abs() / ends).nan_to_num(0))
        bar[:, :, : round(share * _NAME)] = torch.tensor(_BAR, dtype=torch.uint8, device="cpu")[:, None, None]
    labels = []
    for k in best:
        value = _value(known, k)
        labels.append(f"{named(names[k], _NAME - text.width(value, LABEL) - 16)}  {value}")
    what = "What it returns" if known.kind == "figures" else "What it answers"
    what = "Pixels of each class" if isinstance(known, Segmented) else what
    return Sheet(bars, Legend(), title=what, labels=tuple(labels), ncols=1, zoom=1)


def _value(known: Answer, k: int) -> str:
    value = float(known.values[0, k])
    figure = known.kind == "figures" and not isinstance(known, Segmented)
    return number(value) if figure else f"{100 * value:.1f} %"


def _ranked(known: Answer) -> list[int]:
    """The classes, likeliest first; of a segmenter the largest, and the background after all others that occur."""
    if isinstance(known, Segmented):
        classes: list[int] = known.largest(known.values.shape[1])[0].tolist()
        return classes
    order: list[int] = known.values[0].argsort(descending=True).tolist()
    return order


def _stages(model: nn.Module, inputs: Inputs) -> tuple[list[Layer], str]:
    """An early, a middle and a late layer with maps, where there are such: the last of its size, if sizes tell."""
    try:
        calls = walk(model, inputs).layers[1:]
    except LayerError as error:
        return [], f"Maps are left out: {error}".rstrip(".")
    maps = [call for call in calls if call.maps is not None and call.channels > 1 and min(call.maps.shape[2:]) > 1]
    maps = [call for call in maps if call.module is not None] or maps
    if not maps:
        return [], "Maps are left out: no layer of this model returns any"
    ends, count = ends_of_sizes(maps), len(_STAGES)
    if len(ends) < count:  # a pool repeats the maps before it
        ends = [
            call for call in maps if call.module is not None and any(True for _ in call.module.parameters())
        ] or maps
    return spread(ends, min(count, len(ends))), ""


def _words(stages: int) -> tuple[str, ...]:
    return {1: _STAGES[:1], 2: (_STAGES[0], _STAGES[2])}.get(stages, _STAGES)[:stages]


def _maps(word: str, layer: Layer) -> Picture:
    """The strongest maps of one layer."""
    assert layer.maps is not None
    maps = layer.maps[0]
    drawn = shrunk(maps, _MAP, None)
    zoom = max(1, round(_MAP / max(drawn.shape[1:])))
    room = max(_FEWEST, min(_MOST, _ROW // (zoom * drawn.shape[2] + 7)))
    shown = min(room, len(maps))
    size = " × ".join(map(str, maps.shape[1:]))
    sees = "" if layer.field is None else f", each value sees {' × '.join(map(str, layer.field.size))} pixels"
    without = f"; {layer.unplaced}: not drawn" if layer.unplaced else ""
    title = f"{word}: the {shown} strongest of {len(maps)} maps of {layer.name}, {size}{sees}{without}"
    sheet = feature_maps(drawn, top=shown, ncols=room, title=title)
    labels = tuple(f"channel {label}" for label in sheet.labels) if isinstance(sheet, Sheet) else ()
    return replace(sheet, zoom=zoom, labels=labels) if isinstance(sheet, Sheet) else sheet


def _legend_once(rows: Sequence[Picture]) -> list[Picture]:
    """The same rows of maps with one legend, below the last: each map has its own scale, whose ends stand below it."""
    sheets = [row for row in rows if isinstance(row, Sheet)]
    if not sheets or len(sheets) < len(rows):
        return list(rows)
    kinds = [legend for sheet in sheets for legend in (sheet.legend.also, sheet.legend) if legend is not None]
    notes = [tuple(note for note in sheet.legend.notes if note[0] in "×≈") for sheet in sheets]
    ends = ("below each map: the ends of its scale",)
    legends = [*(Legend(notes=own) for own in notes[:-1]), joined(kinds, (*ends, *notes[-1]), told=True)]
    return [replace(sheet, legend=legend) for sheet, legend in zip(sheets, legends, strict=True)]


def _onwards(known: Answer, stages: Sequence[Layer], card: ModelCard | None) -> tuple[str, ...]:
    """Calls that show more, with the names filled in; `x` is the image as the model takes it."""
    by_card = "" if card is None else ", card=card"
    two = _ranked(known)[:2]
    methods = '["gradcam", "occlusion"]' if stages else '["integrated_gradients", "occlusion"]'
    lines = [f"Why this, and not the next?  fv.attributions(model, x, methods={methods}, targets={two}{by_card})"]
    if stages:
        middle = stages[(len(stages) - 1) // 2]
        if middle.layout is not None and middle.layout.tokens is not None:
            lines.append(f'What is alike to it?  fv.tokens(model, x, "{middle.layer}"{by_card})')
        else:
            patches = f'fv.top_patches(model, loader, "{middle.layer}")'
            lines.append(f"What excites a channel?  fv.exemplars({patches}{by_card})")
    lines.append(f'The whole network, layer by layer:  fv.atlas(model, x{by_card}).save("atlas.html")')
    return tuple(lines)
