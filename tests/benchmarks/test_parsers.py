"""What `benchmarks/attack/parsers.py` does, in short: its corpus is replayed, and nothing that reads is left out."""

import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_featviz
from benchmarks.attack import parsers
from benchmarks.attack.script import Script
from torch_featviz import schema

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and limits")

PACKAGE = Path(torch_featviz.__file__).parent
READS = re.compile(
    r"(?<!\.)(?<!def )\b(decoded|restored|checked_state|load_file|safe_open|(torch|np|json)\.loads?|Image\.open)\("
    r"|\.(read_bytes|read_text)\(|\.open\(\"r"
)
OWN = {  # files that only read what is this package's own, or was written a moment before
    "atlas/page.py": "the page's script and style",
    "bench.py": "the trace of torch's profiler",
    "zoo/marks.py": "a drawing that was just written as JPEG",
}
DRAWN = ("report",)  # a third of a second each


@pytest.mark.parametrize("name", [name for name in parsers.PARSERS if name not in DRAWN])
def test_a_corpus_is_read_or_refused_in_words(name):
    assert len(parsers.kept(name)) > 5
    assert parsers.replay(name) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_a_corpus_is_drawn_or_refused_in_words(name):
    assert len(parsers.kept(name)) > 5
    assert parsers.replay(name) == []


def test_what_reads_is_fuzzed():
    texts = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    reading = {name for name, text in texts.items() if READS.search(text)}
    fuzzed = {file for parser in parsers.PARSERS.values() for file in parser.reads}
    assert reading - fuzzed == set(OWN)
    assert fuzzed <= set(texts)


def test_an_error_of_others_is_seen(monkeypatch):
    def raises(pairs):
        raise KeyError("not ours")

    monkeypatch.setattr(schema, "_once", raises)
    wrong = parsers.replay("demo")
    assert wrong
    assert all(text.startswith("demo ") and "KeyError" in text for text in wrong)


def endless(data):
    while True:
        pass


def test_what_hangs_or_grows_is_seen(monkeypatch):
    monkeypatch.setattr(parsers, "SECONDS", 0.05)
    assert parsers.tried(endless, b"", ValueError)[0].startswith("Hung")
    monkeypatch.setattr(parsers, "SECONDS", 10)
    assert parsers.tried(lambda data: None, b"", ValueError) == ("", "")
    peaks = iter([3 * 2**20, 4 * 2**20 + 1])  # kilobytes, before and after
    monkeypatch.setattr(parsers.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=next(peaks)))
    assert parsers.tried(lambda data: None, b"", ValueError)[0] == "grown"


VALUE = {"a": [1, {"b": "x"}, 0.5], "c": (2, None)}


def test_a_script_without_bytes_changes_nothing():
    assert Script(b"").spoilt(VALUE) == VALUE
    assert Script(b"").torn(b"abc") == b"abc"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_a_script_leaves_what_it_is_given(data):
    whole = {"a": [1, {"b": "x"}, 0.5], "c": (2, None)}
    once, again = (repr(Script(data).spoilt(whole)) for _ in range(2))
    assert once == again
    assert whole == VALUE


def test_a_script_reaches_every_place():
    rng = random.Random(0)
    found = {repr(Script(rng.randbytes(4)).spoilt(VALUE)) for _ in range(1000)}
    for gone in ("'a':", "[1,", "'b': 'x'", "0.5", "'c':", "(2,", "None"):
        assert any(gone not in each and each.startswith("{") for each in found)
    assert len(found) > 300
