"""Where NaN or infinity came up first: in time, and along the way that values take."""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

from torch_featviz.training.history import LayerFigures
from torch_featviz.training.records import StepRecord

from .rule import Seen, values_of

WILD = 100.0  # ours: norm of all gradients, or times the first one's, at most ten times that
_WRITTEN = 5  # names in a text


class Broken(NamedTuple):
    """What was the first that is not finite, and what to say of it."""

    step: int
    name: str
    text: str


def first_broken(seen: Seen) -> Broken | None:
    """The first that was not finite in this step, or in one since the last look; None where all is finite."""
    between = _between(seen)
    if between is not None:
        return between
    for find in (_input, _weight_before, _layer, _loss, _gradient, _weight_after):
        if (found := find(seen)) is not None:
            return Broken(seen.sample.step, *found)
    return None


def _between(seen: Seen) -> Broken | None:
    """A step before this one whose loss or gradient was not finite."""
    records = seen.account.records
    place = next((i for i, record in enumerate(records[:-1]) if record.broken), None)
    if place is None:
        return None
    record = records[place]
    if record.loss is not None and not isfinite(record.loss):
        name, what = "loss", f"The loss is {record.loss:g} at step {record.step}"
    else:
        name, what = "gradient", f"The gradient has NaN or infinity at step {record.step}"
        if record.loss is not None:
            what += f", although the loss is finite ({record.loss:.3g}): look for sqrt(0) or x / 0 in the backward"
    before = _spoken(records[place - 1]) if place else ""
    now, good = _where_now(seen), -1 if seen.memory.good is None else seen.memory.good
    if not place and record.step > good + 1:
        text = f"{what}, or in an earlier step: not all steps from {good + 1} on were recorded"
        return Broken(record.step, name, f"{text}. {now} Run again with every=1 from step {good + 1} on.")
    text = f"{what}; this is the first such step{before}"
    if place and _is_wild(records[0], records[place - 1]):
        advice = "Lower the learning rate, or clip gradients."
    else:
        text += ", so its batch is probably broken"
        advice = f"Check the data of step {record.step}."
    return Broken(record.step, name, f"{text}. {now} {advice}")


def _is_wild(first: StepRecord, last: StepRecord) -> bool:
    """Whether the gradient had grown by far, or was huge, a step before."""
    return last.gradient is not None and last.gradient > WILD * max(1.0, min(first.gradient or 1.0, 10.0))


def _spoken(record: StepRecord) -> str:
    parts = [] if record.loss is None else [f"loss {record.loss:.3g}"]
    parts += [] if record.gradient is None else [f"gradient norm {record.gradient:.3g}"]
    return f" (at step {record.step}: {', '.join(parts)})" if parts else ""


def _where_now(seen: Seen) -> str:
    """What of this look still tells: inputs, and whether weights are broken by now."""
    broken = [name for name, each in seen.sample.parameters.items() if not isfinite(each.norm)]
    if broken:
        return f"These weights now contain NaN or infinity: {_names(broken)}."
    found = _broken_layer(seen)
    return f"{found[1]}." if found else f"At step {seen.sample.step} all values are finite again."


def _input(seen: Seen) -> tuple[str, str] | None:
    for name, given in seen.sample.inputs.items():
        if given.nan + given.inf:
            return name, f"The input has {_count(given)} at step {seen.sample.step} ({name}): check the data."
    return None


def _weight_before(seen: Seen) -> tuple[str, str] | None:
    """A weight that was broken before it was used."""
    known = {**seen.account.before, **seen.memory.weights}
    for name, each in seen.sample.parameters.items():
        if not isfinite(known.get(name, 0.0)) and not isfinite(each.norm):
            text = f"{name} has NaN or infinity before the first step: check how it is initialised or loaded."
            return name, text
    return None


def _layer(seen: Seen) -> tuple[str, str] | None:
    found = _broken_layer(seen)
    if found is None:
        return None
    since = "" if seen.memory.good is None else f" from step {seen.memory.good} on"
    return found[0], f"{found[1]}. Run again with every=1{since}, or call first_nonfinite(model, inputs)."


def _broken_layer(seen: Seen) -> tuple[str, str] | None:
    """The first layer with NaN or infinity, and what is known of it."""
    sample, memory = seen.sample, seen.memory
    name = next((name for name, layer in sample.layers.items() if layer.nan + layer.inf), None)
    if name is None:
        return None
    layer, names = sample.layers[name], list(sample.layers)
    text = f"{f'Layer {name}' if name else 'The model'} is the first with NaN or infinity at step {sample.step}"
    text += f" ({_count(layer)})"
    own = [path for path in seen.own[name] if not isfinite(sample.parameters[path].norm)]
    before = names[: names.index(name)]
    if unwatched := _unwatched(seen, before[-1] if before else None, name):
        text += f"; the cause may be an earlier layer that is not watched: {_names(unwatched)}"
    if memory.good is not None and name in memory.ranges:
        low, high = memory.ranges[name]
        text += f"; at step {memory.good} its output was finite, from {low:.3g} to {high:.3g}"
    ranges = [f"{each} {sample.layers[each].min:.3g} to {sample.layers[each].max:.3g}" for each in before[-_WRITTEN:]]
    text += f"; ranges of the layers before it: {', '.join(ranges)}" if ranges else ""
    if not before and sample.inputs:
        text += "; the model's input is finite"
    text += "; its weights contain NaN or infinity after the step" if own else ""
    return name, text


def _unwatched(seen: Seen, last: str | None, name: str) -> list[str]:
    """Leaves of the model between two layers, or before the first, of which nothing is known."""
    leaves, watched = list(seen.account.leaves), seen.sample.layers
    if name not in leaves:
        return []
    start = leaves.index(last) + 1 if last in leaves else 0
    return [leaf for leaf in leaves[start : leaves.index(name)] if leaf not in watched]


def _loss(seen: Seen) -> tuple[str, str] | None:
    record = seen.account.records[-1] if seen.account.records else None
    if record is None or record.loss is None or isfinite(record.loss):
        return None
    text = f"The loss is {record.loss:g} at step {record.step}, although all layer outputs are finite"
    return "loss", f"{text}: look for log(0), 0 / 0 or an empty mean in the loss."


def _gradient(seen: Seen) -> tuple[str, str] | None:
    """Of one that a GradScaler skips nothing moves."""
    for name, each in seen.sample.parameters.items():
        if each.grad_norm is not None and not isfinite(each.grad_norm) and each.update_ratio != 0:
            text = f"The gradient of {name} has NaN or infinity at step {seen.sample.step}"
            return name, (
                f"{text}, although all layer outputs are finite: look for log(0), sqrt(0) or x / 0 in the loss."
            )
    return None


def _weight_after(seen: Seen) -> tuple[str, str] | None:
    for name, each in seen.sample.parameters.items():
        if not isfinite(each.norm):
            text = f"{name} has NaN or infinity after step {seen.sample.step}, although its gradient was finite"
            return name, f"{text}: lower the learning rate."
    return None


def _count(figures: LayerFigures) -> str:
    count = values_of(figures) + figures.nan + figures.inf
    return f"{figures.nan} NaN and {figures.inf} infinite of {count} values"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _WRITTEN} more" if len(names) > _WRITTEN else ""
    return ", ".join(name or "the model" for name in names[:_WRITTEN]) + more
