"""Typefaces that a test makes for itself, so that it does not depend on those of the machine."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import matplotlib.font_manager
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont

from torch_featviz.picture import faces, text

CACHES = (
    faces.installed,
    faces.face_of,
    faces._open,
    faces._ranked,
    faces._draws,
    text.width,
    text._label,
    text._runs,
    text._fitted,
)

Boxes = Mapping[str, tuple[int, int]]  # a letter's width and height above the baseline, of an em of 1000


def typeface(family: str, boxes: Boxes) -> TTFont:
    """Every letter is a box."""
    names = {letter: f"u{ord(letter):04X}" for letter in boxes}
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", *names.values()])
    font.setupCharacterMap({ord(letter): name for letter, name in names.items()})
    glyphs = {".notdef": TTGlyphPen(None).glyph()}
    for letter, (wide, high) in boxes.items():
        pen = TTGlyphPen(None)
        if wide and high:
            pen.moveTo((0, 0))
            for corner in ((0, high), (wide, high), (wide, 0)):
                pen.lineTo(corner)
            pen.closePath()
        glyphs[names[letter]] = pen.glyph()
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics({".notdef": (500, 0), **{names[c]: (wide + 100, 0) for c, (wide, _) in boxes.items()}})
    font.setupHorizontalHeader(ascent=900, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2(sTypoAscender=900, sTypoDescender=-200)
    font.setupPost()
    return font.font


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Say which typefaces are installed: none, or those of one file."""

    def install(**families: Boxes) -> None:
        fonts = [typeface(name.replace("_", " "), boxes) for name, boxes in families.items()]
        path = tmp_path / ("many.ttc" if len(fonts) > 1 else "one.ttf")
        if len(fonts) > 1:
            collection = TTCollection()
            collection.fonts = fonts
            collection.save(path)
        elif fonts:
            fonts[0].save(path)
        for cache in CACHES:
            cache.cache_clear()

    def found(*_: object, **__: object) -> list[str]:
        return [str(path) for path in tmp_path.iterdir() if path.suffix in (".ttf", ".ttc")]

    monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", found)
    manager = matplotlib.font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", list(manager.ttflist))
    monkeypatch.setattr(faces, "_said", set())
    install()
    yield install
    for cache in CACHES:
        cache.cache_clear()
