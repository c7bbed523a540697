"""Circles and crosses the way a hand leaves them: strokes first, then ink, paper and camera."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[np.float64]
Path = Array  # n 2: x to the right, y down
TURN = 2 * np.pi
SIDE = 116
_OVERTONES = 5  # of a shaky line


class Pen(NamedTuple):
    """One line of ink: `path` is `n 2` in pixels, `width` is `n`, also in pixels."""

    path: Path
    width: Array


def draw_mark(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one hand-drawn mark, `116 116` bytes; 0 is black.

    Args:
        label: 0 draws a circle, 1 a cross.
        rng: the only source of randomness; equal states give equal bytes.
    Example:
        >>> draw_mark(0, np.random.default_rng(0)).shape
        (116, 116)
    """
    paths = (_cross if label else _circle)(rng)
    return _photograph(_ink(_place(paths, rng), rng), rng)


# --- what the hand does: paths in a frame of about [-1, 1] ---------------------------------------------


def _wave(rng: np.random.Generator, t: Array, size: float) -> Array:
    """Slow random waviness along `t` in [0, 1]; higher frequencies are weaker."""
    k = np.arange(1, _OVERTONES + 1)[:, None]
    height = rng.normal(0, size, (_OVERTONES, 1)) / k
    return np.asarray((height * np.sin(np.pi * k * t + rng.uniform(0, TURN, (_OVERTONES, 1)))).sum(0))


def _about(rng: np.random.Generator, spread: float) -> float:
    """A normal number about 0 without the far tails."""
    return float(np.clip(rng.normal(0, spread), -2 * spread, 2 * spread))


def _shaken(rng: np.random.Generator, path: Path) -> Path:
    """The same path drawn by an unsteady hand."""
    t = np.linspace(0, 1, len(path))
    slow, fast = abs(_about(rng, 0.024)), abs(_about(rng, 0.006)) * (rng.random() < 0.4)
    shift = np.stack([_wave(rng, t, slow) + _wave(rng, 8 * t, fast) for _ in "xy"], 1)
    return np.asarray(path + shift)


def _arc(rng: np.random.Generator, start: float, sweep: float) -> Path:
    """A round line about the middle: egg-shaped, squarish or lumpy, its radius drifting while it turns."""
    t = np.linspace(0, 1, int(24 + 10 * abs(sweep)))
    angle = start + sweep * t
    k = np.arange(2, 6)[:, None]
    lumps = rng.normal(0, 0.05, (4, 1)) / (k - 1) * np.cos(k * angle + rng.uniform(0, TURN, (4, 1)))
    power = rng.uniform(1.7, 3.2)
    square = (np.abs(np.cos(angle)) ** power + np.abs(np.sin(angle)) ** power) ** (-1 / power)
    drift = 1 + rng.normal(0, 0.05) * np.abs(sweep) * (t - 0.5)
    radius = square * drift * (1 + lumps.sum(0))
    return np.asarray(radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1))


def _polygon(rng: np.random.Generator) -> Path:
    """A circle made of 6 to 11 short straight or barely rounded lines."""
    corners = rng.integers(6, 12)
    angle = np.sort(np.arange(corners) + rng.uniform(-0.25, 0.25, corners)) * TURN / corners
    points = rng.uniform(0.87, 1.13, (corners, 1)) * np.stack([np.cos(angle), np.sin(angle)], 1)
    ring = np.concatenate([points, points[: rng.integers(1, 3)]])
    at = np.linspace(0, len(ring) - 1, 60)
    return np.stack([np.interp(at, np.arange(len(ring)), ring[:, i]) for i in (0, 1)], 1)


def _circle(rng: np.random.Generator) -> list[Path]:
    start = rng.normal(-np.pi / 2, 0.7) if rng.random() < 0.6 else rng.uniform(0, TURN)
    way = 1 if rng.random() < 0.4 else -1
    style = rng.random()
    if style < 0.5:  # closed, a little over or a little under
        paths = [_arc(rng, start, way * (TURN + rng.normal(0.1, 0.25)))]
    elif style < 0.66:  # open
        paths = [_arc(rng, start, way * (TURN - rng.uniform(0.15, 0.8)))]
    elif style < 0.8:  # gone round again
        paths = [_arc(rng, start, way * TURN * rng.uniform(1.1, 2.4))]
    elif style < 0.88:  # two halves
        paths = [_arc(rng, start + h * np.pi, np.pi + rng.uniform(-0.25, 0.4)) for h in (0, 1)]
        paths[1] = paths[1] + rng.normal(0, 0.06, 2)
    elif style < 0.93:
        paths = [_polygon(rng)]
    else:  # closed, with a tail that leaves the round
        ring = _arc(rng, start, way * (TURN + rng.uniform(0, 0.4)))
        out = ring[-1] * np.linspace(1, rng.uniform(0.6, 1.4), 8)[1:, None]
        turn = ring[-1] - ring[-3]
        paths = [np.concatenate([ring, out + turn * np.linspace(0, rng.uniform(0.5, 2.5), 7)[:, None]])]
    longer, axis = np.exp(_about(rng, 0.12)), rng.uniform(0, TURN)  # an oval that leans anywhere
    lean = _spin(axis) @ np.diag([longer, 1 / longer]) @ _spin(-axis)
    return [_shaken(rng, path @ lean) for path in paths]


def _line(rng: np.random.Generator, a: Array, b: Array, bend: float) -> Path:
    """From `a` to `b`, bowed to a side or into an S by about `bend` of its length."""
    t = np.linspace(0, 1, 26)
    across = np.array([a[1] - b[1], b[0] - a[0]])
    bow = _about(rng, bend) * np.sin(np.pi * t) + _about(rng, bend / 3) * np.sin(TURN * t)
    return np.asarray(a + (b - a) * t[:, None] + across * bow[:, None])


def _cross(rng: np.random.Generator) -> list[Path]:
    turn = _about(rng, 0.15) if rng.random() < 0.75 else rng.uniform(0, TURN)
    first = np.pi / 4 + _about(rng, 0.13)
    angle = turn + np.array([first, first + np.pi / 2 + _about(rng, 0.22)])
    way = np.stack([np.cos(angle), np.sin(angle)], 1)
    reach = rng.uniform(0.7, 1.15, (4, 1))
    middle = np.array([[_about(rng, 0.07)], [_about(rng, 0.07)]])
    (a, b), (c, d) = (
        (-reach[i] * way[i] + middle[i] * way[1 - i], reach[i + 2] * way[i] + middle[i] * way[1 - i]) for i in (0, 1)
    )
    bend = abs(_about(rng, 0.05))
    paths = [_line(rng, a, b, bend), _line(rng, c, d, bend)]
    if rng.random() < 0.05:  # each line drawn over once more
        paths += [_line(rng, p + rng.normal(0, 0.06, 2), q + rng.normal(0, 0.06, 2), bend) for p, q in ((a, b), (c, d))]
    return [_shaken(rng, path) for path in paths]


def _place(paths: list[Path], rng: np.random.Generator) -> list[Pen]:
    """Stretch, slant and turn the paths, then give them a size, a place and a pen."""
    squeeze, slant, turn = np.exp(_about(rng, 0.1)), _about(rng, 0.12), _about(rng, 0.12)
    frame = _spin(turn) @ np.array([[squeeze, slant], [0, 1 / squeeze]])
    shaped = [path @ frame.T for path in paths]
    every = np.concatenate(shaped)
    low, high = every.min(0), every.max(0)
    size = SIDE * rng.uniform(0.42, 0.97)
    narrow = float((high - low).min() / (high - low).max())
    pen = min(
        float(np.exp(rng.uniform(np.log(1.4), np.log(14)))), size * min(0.15, 0.26 * narrow)
    )  # a round keeps its hole
    scale = (size - pen) / (high - low).max()
    room = SIDE - scale * (high - low) - pen
    lean = rng.beta(2, 2, 2) if rng.random() < 0.6 else rng.uniform(0, 1, 2)
    corner = pen / 2 + room * lean
    return [Pen((path - low) * scale + corner, _pressure(rng, len(path), pen)) for path in shaped]


def _spin(turn: float) -> Array:
    return np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


def _pressure(rng: np.random.Generator, n: int, width: float) -> Array:
    t = np.linspace(0, 1, n)
    if rng.random() < 0.45:
        return np.full(n, width)
    taper = np.minimum(1, 0.35 + np.minimum(t, 1 - t) * rng.uniform(3, 30))
    return np.asarray(np.maximum(1.1, width * (1 + _wave(rng, t, 0.12)) * taper))


# --- what the paper and the camera do -------------------------------------------------------------------


def _ink(pens: list[Pen], rng: np.random.Generator) -> Array:
    """How much ink lies where, `116 116` in [0, 1]; hard edges now and then, as from a mouse."""
    fine = 1 if rng.random() < 0.2 else 2
    image = Image.new("L", (SIDE * fine, SIDE * fine))
    pencil = ImageDraw.Draw(image)
    for pen in pens:
        points = [(float(x), float(y)) for x, y in pen.path * fine]
        radii = [float(r) for r in pen.width * fine / 2]
        for a, b, r in zip(points, points[1:], radii, strict=False):
            pencil.line((a, b), fill=255, width=max(1, round(2 * r)))
        for (x, y), r in zip(points, radii, strict=True):
            if r > 1:
                pencil.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return np.asarray(image.reduce(fine), dtype=np.float64) / 255


def _photograph(ink: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Ink on paper as bytes: clean as from a screen, or as a scan or a phone would show it."""
    black, white = 0.0, 1.0
    if rng.random() < 0.6:
        black, white = rng.uniform(0, 0.35), rng.uniform(0.8, 1)
    spoil: list[tuple[float, Callable[[Array], Array]]] = [
        (0.08, lambda x: x * np.clip(rng.normal(0.85, 0.3, x.shape), 0, 1)),  # the grain of a pencil
        (0.35, lambda x: _blurred(x, rng.uniform(0.3, 1.4))),
        (1.00, lambda x: white - (white - black) * x / x.max()),
        (0.12, lambda x: np.where(x > (x.min() + x.max()) / 2, 1.0, 0.0)),
        (0.30, lambda x: x * _light(rng, x.shape)),
        (0.40, lambda x: x + rng.normal(0, rng.uniform(0.005, 0.04), x.shape)),
    ]
    image = ink
    for chance, change in spoil:
        if rng.random() < chance:
            image = change(image)
    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return _jpeg(pixels, int(rng.integers(25, 90))) if rng.random() < 0.2 else pixels


def _blurred(image: Array, radius: float) -> Array:
    pixels = Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8))
    return np.asarray(pixels.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float64) / 255


def _light(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A soft shadow: brightness falling to one side, never below half."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    toward = rng.uniform(0, TURN)
    fall = rng.uniform(0.02, 0.22)
    return np.asarray(1 - fall * (1 + np.cos(toward) * x + np.sin(toward) * y) / (1 + np.sqrt(2)) * 2)


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    store = BytesIO()
    Image.fromarray(pixels).save(store, "JPEG", quality=quality)
    return np.array(Image.open(store), dtype=np.uint8)
