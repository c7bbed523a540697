"""The page itself: the template, the style and the script of the folder `page`, with the data put in."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from torch_featviz.printable import encodable

_FOLDER = Path(__file__).with_name("page")
_UNSAFE = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}


def render(title: str, data: dict[str, Any], blobs: list[str]) -> str:
    """The page as HTML; it asks for nothing that is not in it, and runs no script but its own."""
    import jinja2  # noqa: PLC0415  only when a page is made

    style = (_FOLDER / "atlas.css").read_text("utf-8")
    script = "(() => {\n'use strict';\n" + "\n".join(_scripts()) + "\n})();\n"
    loader = jinja2.FileSystemLoader(_FOLDER, "utf-8")
    template = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(
        "atlas.html"
    )
    return template.render(
        title=encodable(title),
        csp=_policy(style, script),
        style=style,
        script=script,
        data=_json(data),
        blobs=blobs,
    )


def _json(data: dict[str, Any]) -> str:
    """Text that a script element can hold; what is no letter, as in a file's name that is no text, is written out."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)
    return encodable(text, json=True)


def _scripts() -> list[str]:
    """In the order of their names, each of which begins with a number."""
    return [file.read_text("utf-8") for file in sorted(_FOLDER.glob("*.js"))]


def _policy(style: str, script: str) -> str:
    """Content-Security-Policy: nothing but this style, this script, and pictures that are in the page."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    return (
        f"default-src 'none'; script-src 'sha256-{script_hash}'; style-src 'sha256-{style_hash}'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
