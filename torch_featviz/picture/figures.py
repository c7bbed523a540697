"""Letters of all scripts in matplotlib figures."""

from functools import partial
from typing import TYPE_CHECKING

from torch_featviz.picture import direction, faces, letters
from torch_featviz.picture.faces import Face
from torch_featviz.picture.text import shorten

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_LONGEST = 1000  # letters of a line: matplotlib needs time and room for each


def make_legible(figure: "Figure") -> "Figure":
    """Give each text of a figure the typefaces that it needs; twice is as once.

    Where no typeface that matplotlib can draw has a letter, it is written out, with one warning per script.

    Args:
        figure: changed in place; texts that the bundled typeface can write are left alone.
    Returns:
        The figure.
    """
    from matplotlib.text import Text  # noqa: PLC0415  no matplotlib on import

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            _write_ticks(axis)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        words = text.get_text()
        if not _is_usual(words) and vars(text).get("legible") != words:
            text.set_text(_written(words, _is_bold(text)))
            _add_families(text, words)
            vars(text)["legible"] = text.get_text()
    return figure


def as_written(figure: "Figure") -> "Figure":
    """A dollar sign in a name is a dollar sign: no text that stands in a figure is read as a formula.

    Args:
        figure: changed in place.
    Returns:
        The figure.
    """
    from matplotlib.text import Text  # noqa: PLC0415

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text():  # numbers at ticks are written later, and may be formulas
            text.set_parse_math(False)
    return figure


def fit(name: str, limit: int, size: int, *, bold: bool = False) -> str:
    """A name on one line of a figure, as matplotlib can draw it, at most `limit` pixels wide at this size in pixels.

    Example:
        >>> fit("golden retriever\\nfirst litter", 120, 12)
        'golden ret…st litter'
    """
    return shorten(faces.legible(name, bold=bold, outlines=True), limit, size, bold)


def _write_ticks(axis: "Axis") -> None:
    """Labels of ticks are written anew whenever they are drawn, so that they are changed where they come from."""
    from matplotlib.ticker import LogFormatter, NullFormatter, ScalarFormatter  # noqa: PLC0415

    if isinstance(axis.get_major_formatter(), (ScalarFormatter, LogFormatter, NullFormatter)):
        return  # numbers
    labels = axis.get_ticklabels()
    words = [label.get_text() for label in labels]
    written = [_written(each, _is_bold(label)) for each, label in zip(words, labels, strict=True)]
    if written != words:
        axis.set_ticks(axis.get_majorticklocs(), labels=written)
    for label, each in zip(axis.get_ticklabels(), words, strict=True):
        _add_families(label, each)
        vars(label)["legible"] = label.get_text()


def _is_usual(words: str) -> bool:
    return words.isascii() and words.replace("\n", "").isprintable() and len(words) <= _LONGEST


def _is_bold(text: "Text") -> bool:
    weight = text.get_fontweight()
    return weight >= 600 if isinstance(weight, int) else "bold" in weight or weight in ("heavy", "black")


def _written(words: str, bold: bool) -> str:
    """What matplotlib can draw of a text, in the order in which it draws letters."""
    if _is_usual(words):
        return words
    lines = [line if len(line) <= _LONGEST else shorten(line, 4 * _LONGEST, 12) for line in words.split("\n")]
    lines = [faces.legible(line, bold=bold, outlines=True) for line in lines]
    if not faces.charts_shape():
        drawn = partial(faces.has, faces.bundled(bold))
        lines = [line if direction.is_rightward(line) else direction.in_order(line, drawn) for line in lines]
    return "\n".join(lines)


def _add_families(text: "Text", words: str) -> None:
    language, bold = letters.language(words), _is_bold(text)
    needed = dict.fromkeys(
        faces.face_of(cluster, language, bold, outlines=True)
        for cluster in ([] if words.isascii() else letters.clusters(words))
    )
    own = text.get_fontfamily()
    more = [_family(face) for face in needed if face is not None and face != faces.bundled(bold)]
    if more:
        text.set_fontfamily([*own, *(name for name in dict.fromkeys(more) if name not in own)])


def _family(face: Face) -> str:
    """The name by which matplotlib finds a typeface; before 3.11 it takes only the first of a file."""
    from matplotlib.font_manager import fontManager  # noqa: PLC0415

    if all(entry.fname != face.path for entry in fontManager.ttflist):
        fontManager.addfont(face.path)
    names = [entry.name for entry in fontManager.ttflist if entry.fname == face.path]
    return face.family if face.family in names else names[0]
