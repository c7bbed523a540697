"""Right and left: in which order letters stand on paper, and how Arabic ones join.

Pillow and matplotlib shape text themselves only where they were built with it; this serves where they cannot.
"""

import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import TypeVar

from torch_featviz.picture.letters import clusters

T = TypeVar("T")

_TATWEEL = "\u0640"
_MIRRORED = dict(zip("()[]{}<>«»‹›", ")(][}{><»«›‹", strict=True))


def is_rightward(text: str) -> bool:
    """Whether every letter of a text runs from left to right."""
    return text.isascii() or not any(unicodedata.bidirectional(letter) in ("R", "AL", "AN") for letter in text)


def levels(line: str) -> list[int]:
    """The direction of each letter as Unicode's bidirectional algorithm tells it: odd is right to left.

    Explicit embeddings and pairs of brackets are left out: labels hardly have them.

    Reference: Unicode Standard Annex 9, rules P2, W1 to W7, N1, N2, I1 and I2.
    """
    kinds = [unicodedata.bidirectional(letter) or "L" for letter in line]
    base = next((int(kind != "L") for kind in kinds if kind in ("L", "R", "AL")), 0)
    edge = "R" if base else "L"
    kinds = _weak(kinds, edge)
    level = {"L": 2 * base, "R": 1, "EN": 2, "AN": 2, "": base}
    groups = [(kind, len(list(same))) for kind, same in groupby(kinds)]
    sides = [edge, *(kind if kind in ("L", "") else "R" for kind, _ in groups), edge]
    found: list[int] = []
    for i, (kind, count) in enumerate(groups):
        agreed = sides[i] if sides[i] == sides[i + 2] else edge
        found += [level[kind or agreed]] * count
    return found


def _weak(kinds: Sequence[str], edge: str) -> list[str]:
    """Letters and numbers alone are left (`L`, `R`, `EN`, `AN`); what takes its direction from them is empty."""
    found: list[str] = []
    strong = edge
    for own in kinds:
        kind = (found[-1] if found else edge) if own == "NSM" else own  # a mark is as its letter
        strong = kind if kind in ("L", "R", "AL") else strong
        found.append("AN" if kind == "EN" and strong == "AL" else kind)
    for i in range(1, len(found) - 1):
        before, kind, after = found[i - 1 : i + 2]
        if before == after and (before, kind) in (("EN", "CS"), ("AN", "CS"), ("EN", "ES")):
            found[i] = before
    for order in (range(len(found)), range(len(found) - 1, -1, -1)):  # signs on both sides of a number
        number = False
        for i in order:
            number = found[i] == "EN" or (number and found[i] == "ET")
            found[i] = "EN" if number else found[i]
    strong = edge
    for i, kind in enumerate(found):
        strong = kind if kind in ("L", "R", "AL") else strong
        side = "L" if kind == "EN" and strong == "L" else "R" if kind == "AL" else kind
        found[i] = side if side in ("L", "R", "EN", "AN") else ""
    return found


def in_sight(runs: Sequence[T], levels: Sequence[int]) -> list[T]:
    """Runs in the order in which they stand on paper from left to right.

    Reference: Unicode Standard Annex 9, rule L2.
    """
    order = list(range(len(runs)))
    for level in range(max(levels, default=0), 0, -1):
        turned: list[int] = []
        for deep, same in groupby(order, [each >= level for each in levels].__getitem__):
            part = list(same)
            turned += part[::-1] if deep else part
        order = turned
    return [runs[i] for i in order]


def mirrored(run: str, drawn: Callable[[str], bool] = bool) -> str:
    """Letters of a right-to-left run from left to right, Arabic ones joined if such forms can be drawn."""
    shaped = joined(run)
    shaped = shaped if drawn(shaped) else run
    return "".join(_MIRRORED.get(cluster, cluster) for cluster in reversed(list(clusters(shaped))))


def in_order(line: str, drawn: Callable[[str], bool] = bool) -> str:
    """A line as it stands on paper from left to right, for whatever knows no other direction.

    Example:
        >>> in_order("אבג 12 abc")
        'abc 12 גבא'
    """
    level = levels(line)
    runs = [(deep, [i for i, _ in same]) for deep, same in groupby(enumerate(level), lambda each: each[1])]
    parts = [line[places[0] : places[-1] + 1] for _, places in runs]
    turned = [mirrored(part, drawn) if deep % 2 else part for part, (deep, _) in zip(parts, runs, strict=True)]
    return "".join(in_sight(turned, [deep for deep, _ in runs]))


def joined(text: str) -> str:
    """Arabic letters in the form that they have beside their neighbours; all others as they are."""
    forms, ligatures = _arabic()
    out: list[str] = []
    last = -1  # the letter before, marks aside, if it reaches out to the next one
    bases: list[str] = []
    for letter in text:
        if unicodedata.category(letter) in ("Mn", "Cf"):
            out.append(letter)
            bases.append("")
            continue
        reached = last >= 0
        if reached and (pair := ligatures.get(bases[last] + letter)):
            kept = "final" if _reaches_back(out[last]) else "isolated"
            out[last] = pair.get(kept, out[last])
            bases[last], last = "", -1
            continue
        shapes = forms.get(letter, {})
        if reached and "final" not in shapes and letter != _TATWEEL:
            reached = False
        if reached and bases[last] != _TATWEEL:
            before = forms[bases[last]]
            out[last] = before.get("medial" if _reaches_back(out[last]) else "initial", out[last])
        out.append(shapes.get("final" if reached else "isolated", letter))
        bases.append(letter)
        last = len(out) - 1 if "initial" in shapes or letter == _TATWEEL else -1
    return "".join(out)


def _reaches_back(form: str) -> bool:
    return unicodedata.decomposition(form).startswith(("<final>", "<medial>"))


@lru_cache
def _arabic() -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """The forms of single letters, and those of lam with alef, by what Unicode says of its presentation forms."""
    forms: dict[str, dict[str, str]] = {}
    ligatures: dict[str, dict[str, str]] = {}
    for code in (*range(0xFB50, 0xFDD0), *range(0xFE80, 0xFEFD)):
        kind, *bases = unicodedata.decomposition(chr(code)).split() or [""]
        letters = "".join(chr(int(base, 16)) for base in bases)
        if len(letters) == 1:
            forms.setdefault(letters, {})[kind.strip("<>")] = chr(code)
        elif len(letters) == 2 and code >= 0xFEF5:
            ligatures.setdefault(letters, {})[kind.strip("<>")] = chr(code)
    return forms, ligatures
