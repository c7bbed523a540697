"""Which typeface has a letter: the bundled one, else one that is installed, else none."""

import re
import unicodedata
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ImageFont, features

from torch_featviz.picture import letters
from torch_featviz.warn import warn

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

_LANGUAGES = {
    "Chinese": re.compile(r"\b(SC|CN|GB|Hans)\b|YaHei|Sim(Hei|Sun)|WenQuanYi|DengXian|Fallback"),
    "Japanese": re.compile(r"\b(JP|J)\b|Hiragino|Yu Gothic|Meiryo|MS P?Gothic|IPA|Takao|VL P?Gothic"),
    "Korean": re.compile(r"\b(KR|K)\b|Malgun|Nanum|Apple SD|Baekmuk"),
}
_ODD = re.compile(
    r"Serif|Mono|Song|Ming|Mincho|Batang|Naskh|Nastaliq|Kufi|Rashi|Looped|\bUI\b|Light|Thin|Black|Condensed"
)
_NO_LETTERS = re.compile(r"LastResort|Last Resort|Adobe Blank|Tofu")
_PACKAGES = {"CJK": "fonts-noto-cjk", "emoji": "fonts-noto-color-emoji", "symbol": "fonts-symbola"}
_STRIKES = (109, 128, 136, 160, 96, 72, 64, 48, 40, 32, 20)  # pixels of faces that are made of pictures
_NO_INK = re.compile(
    "[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff]"
)  # joiners and the like: no ink
_NEEDS_SHAPE = re.compile("[\u0900-\u0dff\u0f00-\u109f\u1780-\u17ff]")  # of India, Tibet, Burma and Cambodia
_NO_SCRIPT = ("Cc", "Cf", "Cn", "Co", "Cs")
_SIGNS = {"\r\n": "↵", "\n": "↵", "\r": "↵", "\u2028": "↵", "\u2029": "↵", "\t": "⇥"}
_said: set[tuple[str, bool]] = set()  # scripts of which has been warned, and whether of charts alone
SHAPES = features.check("raqm")


class Face(NamedTuple):
    """One typeface in a file that may hold several."""

    path: str
    number: int
    family: str
    style: str


@lru_cache
def bundled(bold: bool = False) -> Face:
    """The typeface that matplotlib brings along."""
    import matplotlib  # noqa: PLC0415  only when something is written

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Face(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), 0, "DejaVu Sans", "Bold" if bold else "")


@lru_cache
def installed() -> tuple[Face, ...]:
    """All typefaces of the machine, slanted ones aside; looked for once, as matplotlib's own list may be old."""
    from matplotlib.font_manager import findSystemFonts  # noqa: PLC0415  only when a letter is missing

    return tuple(face for path in sorted(findSystemFonts()) for face in faces_of(path))


def faces_of(path: str) -> list[Face]:
    """The typefaces in a file; none if it cannot be read."""
    found: list[Face] = []
    while font := _open(path, len(found), 16):
        family, style = font.getname()
        found.append(Face(path, len(found), family or "", style or ""))
        if not path.lower().endswith(("c", "dfont")):
            break
    return [f for f in found if not re.search("Italic|Oblique", f.style) and not _NO_LETTERS.search(f.family)]


@lru_cache(maxsize=32)
def _open(path: str, number: int, size: int) -> ImageFont.FreeTypeFont | None:
    layout = ImageFont.Layout.RAQM if SHAPES else ImageFont.Layout.BASIC
    for each in (size, *_STRIKES):
        try:
            return ImageFont.truetype(path, each, number, layout_engine=layout)
        except OSError as error:
            if "pixel size" not in str(error):
                return None
    return None


def opened(face: Face, size: int) -> ImageFont.FreeTypeFont:
    """The typeface at this size, or at the nearest one that it has, with shaping where Pillow can."""
    font = _open(face.path, face.number, size)
    assert font is not None, "a face is one that could be opened"
    return font


@cache
def _codes(path: str, number: int) -> npt.NDArray[np.int64]:
    """All code points that a typeface has, in order."""
    from fontTools.ttLib import TTFont  # noqa: PLC0415  only when a letter is missing

    try:
        with TTFont(path, fontNumber=number, lazy=True) as font:
            return np.array(sorted(font.getBestCmap() or ()), np.int64)
    except Exception:  # fontTools raises whatever a broken file leads to
        return np.array([], np.int64)


def has(face: Face, text: str) -> bool:
    """Whether a typeface has all letters of a text."""
    if face in (bundled(), bundled(bold=True)):
        return all(_bundled_has(face.path, letter) for letter in text)
    codes, wanted = _codes(face.path, face.number), [ord(letter) for letter in text]
    at = np.searchsorted(codes, wanted)
    return bool(codes.size) and bool((codes[np.minimum(at, codes.size - 1)] == wanted).all())


@lru_cache(maxsize=65536)
def _bundled_has(path: str, letter: str) -> bool:
    return _table(path).get_char_index(ord(letter)) != 0


@lru_cache
def _table(path: str) -> "FT2Font":
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415  quicker than fontTools, where it can be used

    return FT2Font(path)


@lru_cache(maxsize=65536)
def face_of(cluster: str, language: str = "Chinese", bold: bool = False, outlines: bool = False) -> Face | None:
    """The typeface that draws a letter with its marks, or None.

    Args:
        cluster: one of `letters.clusters`.
        language: whose form of a Chinese character is meant.
        bold: if there is such a one.
        outlines: no coloured ones, which matplotlib cannot draw.
    """
    wanted = _NO_INK.sub("", cluster)
    for face in (bundled(bold), bundled()):
        if has(face, wanted):
            return face
    lacking = _lacking(cluster)
    if unicodedata.category(lacking) in ("Cc", "Co", "Cs"):  # a private letter is another one in each typeface
        return None
    faces = _ranked(letters.script(lacking), language, bold)
    return next((face for face in faces if has(face, wanted) and _draws(face, cluster, outlines)), None)


def _lacking(cluster: str) -> str:
    """The letter or mark of a cluster that the bundled typeface lacks."""
    return next((letter for letter in _NO_INK.sub("", cluster) if not has(bundled(), letter)), cluster[0])


@lru_cache(maxsize=256)
def _ranked(script: str, language: str, bold: bool) -> list[Face]:
    """The installed typefaces, those first that are made for this script and look like the bundled one."""

    def rank(face: Face) -> tuple[bool, int, bool, str, str]:
        fits = _LANGUAGES[language].search(face.family) if script == "CJK" else script.lower() in face.family.lower()
        weight = re.search("Bold", face.style) if bold else re.fullmatch("Regular|Book|Roman|Normal|", face.style)
        return not fits, len(_ODD.findall(face.family)), not weight, face.family, face.style

    return sorted(installed(), key=rank)


@lru_cache(maxsize=4096)
def _draws(face: Face, cluster: str, outlines: bool) -> bool:
    """Whether ink comes of it: newer coloured typefaces are blank to Pillow, and pictures foreign to matplotlib."""
    font = opened(face, 16)
    if outlines and (font.size != 16 or re.search("Color", face.family)):
        return False
    return cluster.isspace() or font.getmask(cluster).getbbox() is not None


def charts_shape() -> bool:
    """Whether matplotlib joins letters and knows their direction."""
    import matplotlib  # noqa: PLC0415

    return matplotlib.__version_info__ >= (3, 11)


def legible(line: str, *, bold: bool = False, outlines: bool = False) -> str:
    """One line whose every letter can be drawn: what no typeface has is written out, `[732B]` or `[dog face]`.

    Warns once per script that has no typeface.

    Args:
        line: any text; line breaks and tabs become signs.
        bold: as it will be drawn.
        outlines: for matplotlib, which draws no coloured letters.
    Example:
        >>> legible("a\\nb\\ue000")
        'a↵b[E000]'
    """
    if line.isascii() and line.isprintable():
        return line
    language, shapes = letters.language(line), charts_shape() if outlines else SHAPES
    out: list[str] = []
    spelled = False
    for cluster in letters.clusters(line):
        sign = _SIGNS.get(cluster)
        if sign or face_of(cluster, language, bold, outlines):
            out.append(sign or cluster)
            spelled = False
            if not shapes and _NEEDS_SHAPE.search(cluster):
                _say_unshaped(cluster, outlines)
            continue
        out.append(f"{out.pop()[:-1]} {_spelled(cluster)}]" if spelled else f"[{_spelled(cluster)}]")
        spelled = True
        _miss(cluster, language, outlines)
    return "".join(out)


def _spelled(cluster: str) -> str:
    emoji = letters.script(_lacking(cluster)) in ("emoji", "symbol")
    names = [unicodedata.name(letter, "").lower() if emoji else f"{ord(letter):04X}" for letter in cluster]
    drawn = [name for name, letter in zip(names, cluster, strict=True) if name and not _NO_INK.match(letter)]
    return " ".join(drawn).replace("regional indicator symbol letter ", "")


def _miss(cluster: str, language: str, outlines: bool) -> None:
    lacking = _lacking(cluster)
    script = letters.script(lacking)
    name = language if script == "CJK" else script
    colored = outlines and face_of(cluster, language) is not None
    if unicodedata.category(lacking) in _NO_SCRIPT or not _first((name, colored)):
        return
    what = {"emoji": "emoji", "symbol": "such symbols"}.get(script, f"{name} letters")
    typeface = "typeface that matplotlib can draw" if colored else "installed typeface"
    written = "their names are" if script in ("emoji", "symbol") else "their code points are"
    package = "fonts-symbola" if colored else _PACKAGES.get(script, "fonts-noto-core")
    warn(
        f"no {typeface} has {what}, such as U+{ord(lacking):04X}; {written} written instead. "
        f"Install one, as by 'apt install {package}', and start anew."
    )


def _say_unshaped(cluster: str, outlines: bool) -> None:
    name = letters.script(cluster[0])
    if _first((f"unshaped {name}", outlines)):
        who = "matplotlib before 3.11" if outlines else "Pillow without FriBiDi"
        cure = "pip install -U matplotlib" if outlines else "apt install libfribidi0"
        warn(f"{who} cannot join {name} letters: they stand side by side. Mend it, as by '{cure}', and start anew.")


def _first(what: tuple[str, bool]) -> bool:
    """Whether this has not been said before."""
    new = what not in _said
    _said.add(what)
    return new
