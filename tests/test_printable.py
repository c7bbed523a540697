"""Names of files, layers and weights may hold anything; a terminal and a page get text alone."""

import ast
import io
import json
import pickle
import time
import unicodedata
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torch_featviz
from torch_featviz import atlas, capture, cli, errors, pixels
from torch_featviz.cli import commands
from torch_featviz.errors import FeatvizError, FeatvizWarning
from torch_featviz.picture import text
from torch_featviz.printable import encodable, escaped, printable, say
from torch_featviz.table import html_table, text_table
from torch_featviz.warn import warn

EVIL = "\x1b]0;owned\x07\x9b2J\u202egnp.\udce9"
TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
anything = st.text(st.characters() | st.sampled_from([*EVIL, "\n", "\t", "\r", "\u2028", "\ud800"]))


def is_safe(letter):
    """By the tables of Unicode, not by the library's list."""
    return (
        unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp") and unicodedata.bidirectional(letter) not in TURNS
    )


@given(anything)
def test_what_is_printable(words):
    line, lines = printable(words), printable(words, lines=True)
    assert all(map(is_safe, line))
    assert all(is_safe(letter) for letter in lines if letter not in "\n\t")
    assert lines.count("\n") == words.count("\n")
    assert line.encode().decode() == line
    assert printable(line) == line
    if all(map(is_safe, words)) and not set(words) & set("\u200e\u200f\u061c"):
        assert line == words


@given(anything)
def test_what_was_written_out_can_be_read_back(words):
    assert json.loads(f'"{printable(json.dumps(words)[1:-1])}"') == words
    assert json.loads(encodable(json.dumps(words, ensure_ascii=False), json=True)) == encodable(words)


@given(anything, st.sampled_from([kind for kind in vars(errors).values() if isinstance(kind, type)]))
def test_errors_and_warnings(words, kind):
    if issubclass(kind, FeatvizWarning):
        with pytest.warns(kind) as told:
            warn(words, kind)
        said = str(told[0].message)
    else:
        error = kind(words)
        said = str(error)
        assert str(pickle.loads(pickle.dumps(error))) == said
    assert said == printable(words, lines=True)


def test_errors_are_bounded():
    assert len(str(FeatvizError("a" * 10_000_000))) == 20_000 - 1


@given(st.lists(st.lists(anything, min_size=2, max_size=2), max_size=3))
def test_tables(rows):
    table = text_table(["a", "b"], rows)
    assert len(table.split("\n")) == len(rows) + 2
    assert all(map(is_safe, table.replace("\n", "")))
    html_table(["a", "b"], rows).encode()


def test_a_long_cell_does_not_widen_each_row():
    assert len(text_table(["a"], [["x" * 1_000_000], *[["y"]] * 1000], right=[0])) < 500_000


def test_what_the_command_says_of_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({EVIL: torch.ones(1), "a" * 1_000_000: torch.ones(1)}, "w.pt")
    assert cli.main(["kernels", "xo", "--weights", "w.pt"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert r"2 unexpected: \u001b]0;owned\u0007\u009b2J\u202egnp.\udce9, aaa" in err
    assert len(err) < 1000


@pytest.mark.parametrize("line", [["layers", "xo", EVIL], ["kernels", EVIL], ["report", EVIL], [EVIL]])
def test_what_the_command_says_of_arguments(line, capsys):
    with suppress(SystemExit):
        assert cli.main(line) == 1
    said = "".join(capsys.readouterr())
    assert said.encode()
    assert all(is_safe(letter) for letter in said if letter != "\n")


def test_what_the_command_warns_of(monkeypatch):
    told, usual = [], warnings.formatwarning

    def layers(arguments):
        told.append(warnings.formatwarning(EVIL, UserWarning, "net.py", 1, "line"))

    monkeypatch.setattr(commands, "layers", layers)
    assert cli.main(["layers", "xo"]) == 0
    assert told == [rf"net.py:1: UserWarning: {printable(EVIL)}" + "\n  line\n"]
    assert warnings.formatwarning is usual


def test_all_that_the_command_prints_goes_one_way():
    folder = Path(torch_featviz.__file__).parent
    for file in [*folder.glob("cli/*.py"), *folder.glob("demo/*.py")]:
        names = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        assert "print" not in names, file


def test_say():
    file = io.StringIO()
    say({"a": 1}, file=file)
    say("a\rb\n\tc", file=file)
    assert file.getvalue() == "{'a': 1}\na\\u000db\n\tc\n"


def named():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    net.add_module("\x1b[2J\n\udce9", nn.ReLU())
    return net


def test_what_is_shown_of_layers_with_such_names():
    net, images = named(), torch.rand(1, 1, 6, 6)
    with capture(net) as acts:
        net(images)
    assert all(is_safe(letter) for letter in str(acts) if letter != "\n")
    assert str(acts).count("\n") == len(acts)
    acts._repr_html_().encode()
    shown = torch_featviz.summary(net, images)
    assert all(is_safe(letter) for letter in str(shown) if letter != "\n")
    shown._repr_html_().encode()


def test_a_page_with_a_file_name_that_is_no_text(tmp_path):
    page = atlas(named(), torch.rand(1, 1, 6, 6), names=["caf\udce9<b>.png"])
    page._repr_html_().encode()
    assert page.save(tmp_path / "a.html").read_text("utf-8") == page.html
    assert r"caf\\udce9\u003cb\u003e.png" in page.html, "in JSON"
    assert escaped("<\udce9>") == r"&lt;\udce9&gt;"


@pytest.mark.parametrize("unit", ["a", "ab ", "圆", "a\u0301", "\u0301", "אa", "a\n", "\ue000", "\u202ea", "🐶\u200d"])
def test_long_titles_cost_linear_time_and_a_bounded_picture(unit):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scripts without a typeface
        text.wrap(unit * 10, 300, 16, True)
        start = time.process_time()
        drawn = pixels(torch.rand(4, 4), title=unit * (100_000 // len(unit))).numpy()
    assert time.process_time() - start < 2
    assert drawn.shape[0] < 3000
