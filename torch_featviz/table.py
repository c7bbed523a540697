"""Small tables, as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch_featviz.printable import escaped, printable

Row = Sequence[str]
_LONGEST = 400  # letters of a cell, as each row is as wide as the widest


def text_table(heading: Row, rows: Sequence[Row], *, right: Collection[int] = ()) -> str:
    """Columns below their heading and a rule; those whose numbers are in `right` are set flush right.

    Example:
        >>> print(text_table(["net", "accuracy"], [["small", "9.0 %"], ["large", "91.0 %"]], right=[1]))
        net    accuracy
        ---------------
        small     9.0 %
        large    91.0 %
    """
    every = [[printable(cell, longest=_LONGEST) for cell in row] for row in (heading, *rows)]
    widths = [max(len(row[i]) for row in every) for i in range(len(heading))]
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in every
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def html_table(heading: Row, rows: Sequence[Row], *, right: Collection[int] = ()) -> str:
    """The same as HTML.

    Example:
        >>> html_table(["net"], [["a < b"]])[-34:]
        'a &lt; b</td></tr></tbody></table>'
    """

    def line(cells: Row, tag: str) -> str:
        sides = ("right" if i in right else "left" for i in range(len(cells)))
        return "".join(
            f'<{tag} style="text-align:{side}; padding:0 .7em">{escaped(cell)}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{line(heading, 'th')}</tr></thead><tbody>{body}</tbody></table>"
