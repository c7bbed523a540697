"""Rules about what the model is given: told as what it is, and not by its effects."""

from __future__ import annotations

from math import hypot

from torch_featviz.capture.given import INPUTS
from torch_featviz.training.history import LayerFigures

from .rule import Judged, Rule, Seen, values_of

ENOUGH = 64  # ours: of fewer values nothing is said
LARGE = 30.0  # ours: root mean square
SMALL = 5e-3  # ours: the largest; images divided by 255 twice end at 1/255
NEAR = 0.12  # ours: of an end of the range, as a share of the range
_BLANK = 0.05  # of what is given, the least that a layer without normalisation makes of it
_ORDINARY = 0.5  # std
_IMAGES = (1, 3, 4)  # channels

# mean and std of usual normalisations, of each channel
_PRESETS = {
    "ImageNet": ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225)),
    "0.5, 0.5": ((0.5, 0.5),),
    "CIFAR-10": ((0.4914, 0.247), (0.4822, 0.2435), (0.4465, 0.2616)),
    "MNIST": ((0.1307, 0.3081),),
}


def constant(seen: Seen) -> Judged:
    several = [each for each in seen.sample.inputs.values() if values_of(each) >= ENOUGH]
    for name, given in _given(seen):  # the first may be a mask
        same = all(each.min == each.max for each in several)
        yield name, f"all {given.min:.3g}", same and seen.account.stepped


def twice_normalised(seen: Seen) -> Judged:
    for name, given in _given(seen):
        yield name, _spread(given), given.channels in _IMAGES and _is_twice(given)


def bytes_given(seen: Seen) -> Judged:
    for name, given in _given(seen):
        yield name, _spread(given), _are_bytes(given) and not _is_normalised_first(seen, given)


def large(seen: Seen) -> Judged:
    for name, given in _given(seen):
        beyond = _rms(given) > LARGE and not _are_bytes(given) and not _is_normalised_first(seen, given)
        yield name, _spread(given), beyond


def small(seen: Seen) -> Judged:
    for name, given in _given(seen):
        largest = max(abs(given.min), abs(given.max))
        yield name, _spread(given), given.min < given.max and largest < SMALL and not _is_raised(seen)


def _given(seen: Seen) -> list[tuple[str, LayerFigures]]:
    """The first input, where it has values enough; others are masks, times and the like."""
    first = {INPUTS, f"{INPUTS}()"}
    return [(name, each) for name, each in seen.sample.inputs.items() if name in first and values_of(each) >= ENOUGH]


def _spread(given: LayerFigures) -> str:
    return f"{given.min:.3g} to {given.max:.3g}, mean {given.mean:.3g}, std {given.std:.3g}"


def _rms(given: LayerFigures) -> float:
    return hypot(given.mean, given.std)


def _are_bytes(given: LayerFigures) -> bool:
    return given.min >= 0 and 64 < given.max <= 255 and given.channels in _IMAGES and given.mean > 1


def _is_normalised_first(seen: Seen, given: LayerFigures) -> bool:
    """Whether the first layer makes ordinary values of it, as after a normalisation within the model."""
    first = next(iter(seen.sample.layers.values()), None)
    return first is not None and first.std < _BLANK * _rms(given)


def _is_raised(seen: Seen) -> bool:
    """Whether the first layer makes ordinary values of small ones, as a normalisation does."""
    first = next(iter(seen.sample.layers.values()), None)
    return first is not None and first.std > _ORDINARY


def _is_twice(given: LayerFigures) -> bool:
    """Whether its ends are where 0 and 1 go when the mean is subtracted, and divided by the std, two times over."""
    own = ((-given.mean / given.std, 1 / given.std),) if given.std > 2 and given.mean < 0 else ()
    return any(_fits(given, preset) for preset in (*_PRESETS.values(), own) if preset)


def _fits(given: LayerFigures, preset: tuple[tuple[float, float], ...]) -> bool:
    once = [((0 - mean) / std, (1 - mean) / std) for mean, std in preset]
    twice = [((low - mean) / std, (high - mean) / std) for (low, high), (mean, std) in zip(once, preset, strict=True)]
    low, high = min(low for low, _ in twice), max(high for _, high in twice)
    room = NEAR * (high - low)
    inside = low - 0.02 <= given.min <= low + room and high - room <= given.max <= high + 0.02
    return inside and given.min < min(low for low, _ in once)


RULES = (
    Rule("inputs", constant, 1,
         "All values of the input are equal: {names}",
         "Check how the data is loaded."),
    Rule("inputs", twice_normalised, 1,
         "The input images seem to be normalised twice: {names}",
         "Subtract the mean and divide by the std only once."),
    Rule("inputs", bytes_given, 1,
         "The input images have values from 0 to 255: {names}",
         "Divide them by 255 and normalise them."),
    Rule("inputs", large, 1,
         f"The input values are large (root mean square above {LARGE:g}): {{names}}",
         "Scale them to a mean of about 0 and a std of about 1."),
    Rule("inputs", small, 1,
         f"The input values are tiny (all magnitudes below {SMALL:g}): {{names}}",
         "Check that they are not divided by 255 twice; scale them to a std of about 1."),
)  # fmt: skip
