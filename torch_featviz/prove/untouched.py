"""What capture leaves as it was, and whether it holds what layers returned, in each way to run the model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from torch_featviz.capture.compiled import compiled_calls
from torch_featviz.capture.eager import uncompiled
from torch_featviz.errors import FeatvizError

from .bits import apart, distance, same
from .claims import Claim
from .runs import EVAL, MODES, Look, Mode, Ran, run, run_on
from .state import State
from .subject import Subject

WORDS = {
    "outputs": "Outputs are the same with capture as without",
    "gradients": "Gradients of input and parameters are the same",
    "state": "Nothing else changes: buffers, random numbers, hooks, flags",
    "captured values": "Each captured value is what its layer returned",
    "kept values": "Captured values stay so, or are refused",
    "restored": "The model is as it was before this proof",
}
_MANY = 3  # differences named in one line


def untouched(subject: Subject) -> list[Claim]:
    """What holds of captures of this model; it is run as itself, and put back after each forward."""
    with torch.inference_mode(False):
        return _checked(subject, State(subject.model), Found())


def _checked(subject: Subject, state: State, found: Found) -> list[Claim]:
    try:
        if any(True for module in subject.model.modules() for _ in compiled_calls(module)):
            _check_compiled(subject, state, found)
        else:
            for mode in MODES:
                _check(subject, mode, state, found)
    finally:
        state.restore()
    left = state.changes()
    found.add("restored", "", not left, f"changed: {_listed(left)}" if left else "all of it")
    return found.claims()


class Found:
    """How the claims came out, mode by mode."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[str, bool | None, str]]] = {}

    def add(self, claim: str, mode: str, holds: bool | None, text: str = "") -> None:
        self._rows.setdefault(claim, []).append((mode, holds, text))

    def claims(self) -> list[Claim]:
        return [_together(name, words, self._rows[name]) for name, words in WORDS.items() if name in self._rows]


def _together(name: str, words: str, rows: list[tuple[str, bool | None, str]]) -> Claim:
    """One claim about all modes: where it fails, then where it holds, then where it could not be checked."""
    modes: dict[tuple[bool | None, str], list[str]] = {}
    for mode, holds, text in rows:
        modes.setdefault((holds, text), []).append(mode)
    order = (False, True, None)
    said = [_said_of(*key, ", ".join(modes[key])) for key in sorted(modes, key=lambda key: order.index(key[0]))]
    return Claim(name, words, next(holds for holds in order if any(key[0] is holds for key in modes)), "; ".join(said))


def _said_of(holds: bool | None, text: str, modes: str) -> str:
    if not modes:
        return text
    if holds is False:
        return f"{modes}: {text}"
    return ("" if holds else "not checked in ") + modes + f" ({text})" * bool(text)


def _check(subject: Subject, mode: Mode, state: State, found: Found) -> None:
    """In one mode: without capture, with it, a further forward of other images, and without capture again."""
    ran = partial(run, subject, mode, state)
    try:
        bare = ran(backward=mode.gradients)
    except Exception as error:  # as a detector ends that wants its targets in training
        if mode is EVAL:
            raise
        found.add("outputs", mode.name, None, f"the model does not run so: {_said(error)}")
        for claim in ("state", "captured values"):
            found.add(claim, mode.name, None)
        return
    try:
        look = Look(subject.model)
        seen = ran(backward=mode.gradients, look=look)
    except Exception as error:
        holds = None if isinstance(error, FeatvizError) else False
        found.add("outputs", mode.name, holds, f"with capture it ends in {_said(error)}")
        return
    failed = run_on(subject, mode)
    wrong, refused = look.compare()
    again = ran(backward=mode.gradients and not same(bare.gradients, seen.gradients))
    _compare_outputs(bare, seen, again, mode, found)
    if mode.gradients:
        _compare_gradients(bare, seen, again, mode, found)
    _compare_changes(bare, seen, again, mode, found)
    found.add("captured values", mode.name, not look.wrong, _some(look.wrong) or look.count)
    if failed:
        found.add("kept values", mode.name, None, f"it does not run on other images: {_said(failed)}")
    else:
        found.add("kept values", mode.name, not wrong, _some(wrong) or f"refused: {_some(refused)}" * bool(refused))


def _compare_outputs(bare: Ran, seen: Ran, again: Ran, mode: Mode, found: Found) -> None:
    if not same(bare.outputs, again.outputs):
        found.add("outputs", mode.name, None, f"it differs from itself: {apart(bare.outputs, again.outputs)}")
    elif same(bare.outputs, seen.outputs):
        found.add("outputs", mode.name, True)
    else:
        found.add("outputs", mode.name, False, apart(bare.outputs, seen.outputs))


def _compare_gradients(bare: Ran, seen: Ran, again: Ran, mode: Mode, found: Found) -> None:
    """`again` has gradients where the others disagree: they tell a fault from operators that are never twice alike."""
    if isinstance(bare.gradients, str):
        found.add("gradients", mode.name, None, bare.gradients)
    elif same(bare.gradients, seen.gradients):
        found.add("gradients", mode.name, True)
    elif not same(bare.gradients, again.gradients):
        found.add("gradients", mode.name, None, f"it differs from itself: {_of_gradients(bare, again)}")
    else:
        found.add("gradients", mode.name, False, _of_gradients(bare, seen))


def _of_gradients(one: Ran, other: Ran) -> str:
    if isinstance(one.gradients, str) or isinstance(other.gradients, str):
        return next(each for each in (other.gradients, one.gradients) if isinstance(each, str))
    names = [name for name, gradient in one.gradients.items() if not same(gradient, other.gradients[name])]
    return f"{_listed(names)}: {apart([*one.gradients.values()], [*other.gradients.values()])}"


def _compare_changes(bare: Ran, seen: Ran, again: Ran, mode: Mode, found: Found) -> None:
    """What the model changes by itself, alike each time, is its own; what it changes never twice alike says nothing."""
    one, two, other = bare.changes, seen.changes, again.changes
    wild = {path for path in {**one, **other} if not _alike(one, other, path)}
    paths = {path for path in {**one, **two} if path not in wild and not _alike(one, two, path)}
    paths |= again.began - seen.began  # and could not be put back
    if paths:
        found.add("state", mode.name, False, f"changed: {_listed(paths)}")
    elif wild:
        found.add("state", mode.name, None, f"it changes by itself, never twice alike: {_listed(wild)}")
    else:
        found.add("state", mode.name, True)


def _alike(one: dict[str, Any], other: dict[str, Any], path: str) -> bool:
    return path in one and path in other and same(one[path], other[path])


def _check_compiled(subject: Subject, state: State, found: Found) -> None:
    """Compiled with and without capture, beside the same model in eager mode."""
    ran = partial(run, subject, EVAL, state)
    mode = EVAL._replace(name="compiled")
    look = Look(subject.model)
    with uncompiled():
        eager = ran()
    bare, seen, again = ran(), ran(look=look), ran()
    apart_by, allowed = distance(bare.outputs, seen.outputs), distance(bare.outputs, eager.outputs)
    text = f"{apart_by:.3g} from the bare compiled model, which is {allowed:.3g} from eager"
    found.add("outputs", mode.name, apart_by <= allowed, text)
    found.add("captured values", mode.name, None, "inside of a compiled graph nobody else sees what layers return")
    _compare_changes(bare, seen, again, mode, found)


def _said(error: BaseException) -> str:
    error = error.__cause__ or error  # which the model raised
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _some(words: list[str]) -> str:
    more = f" and {len(words) - _MANY} more" if len(words) > _MANY else ""
    return "; ".join(words[:_MANY]) + more


def _listed(names: Any) -> str:
    names = sorted(names)
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more
