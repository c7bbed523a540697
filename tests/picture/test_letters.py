"""Letters are kept whole, and lines break where readers expect it."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_featviz.picture.letters import clusters, language, pieces, script

family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
whole = [
    "a",
    "Ж",
    "圆",
    "e\u0301",
    "क\u094dष\u093f",
    "กี\u0e48",
    family,
    "\U0001f44d\U0001f3fd",
    "❤\ufe0f",
    "각",
    "שׁ",
    " ",
]


@given(st.lists(st.sampled_from(whole), max_size=12))
def test_letters_are_kept_whole(parts):
    assert list(clusters("".join(parts))) == parts


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("", []),
        ("\r\n\n", ["\r\n", "\n"]),
        ("🇩🇪🇫🇷🇯", ["🇩🇪", "🇫🇷", "🇯"]),
        ("\u1112\u1161\u11ab\u1100", ["\u1112\u1161\u11ab", "\u1100"]),
        ("\u0301a", ["\u0301", "a"]),
        ("🏴\U000e0067\U000e007f!", ["🏴\U000e0067\U000e007f", "!"]),
    ],
)
def test_flags_syllables_and_line_breaks(words, parts):
    assert list(clusters(words)) == parts


def test_a_million_letters_take_no_time_to_speak_of():
    assert sum(map(len, clusters("圆形a\u0301" * 250_000))) == 1_000_000


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("feature", ["feature"]),
        ("圆形", ["圆", "形"]),
        ("模型ResNet-50层", ["模", "型", "ResNet-50", "层"]),
        ("他说：“好”。", ["他", "说：", "“好”。"]),
        ("ローマ", ["ロー", "マ"]),
        ("한국어", ["한국어"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("привет", ["привет"]),
    ],
)
def test_lines_break_between_letters_only_where_a_script_has_no_spaces(word, parts):
    assert pieces(word) == parts


@given(st.text(max_size=60))
def test_nothing_is_lost_at_a_break(words):
    assert "".join(pieces(words)) == "".join(clusters(words)) == words
    assert not any(unicodedata.category(piece[0]) in ("Pe", "Pf", "Po") for piece in pieces("圆" + words)[1:])


def test_scripts_and_languages_have_names():
    assert [script(letter) for letter in "aжωשبक圆か각"] == [
        *("Latin", "Cyrillic", "Greek", "Hebrew", "Arabic", "Devanagari", "CJK", "CJK", "CJK")
    ]
    assert (script("🐶"), script("☂"), script("\U00013001"), script("\ue000")) == (
        *("emoji", "symbol", "Egyptian", ""),
    )
    assert [language(words) for words in ("直", "直す", "직直", "cat")] == ["Chinese", "Japanese", "Korean", "Chinese"]
