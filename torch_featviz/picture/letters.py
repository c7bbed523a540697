"""What text is made of: letters with their marks, of which script, and where a line may break."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

_JOINER = "\u200d"
_NO_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")  # Thai, Lao, Burmese and Khmer words
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7ff]")
_KANA = re.compile("[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_CJK = re.compile(
    "[\u1100-\u11ff\u2e80-\u31ff\u3200-\u9fff\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef]|[\U00020000-\U0003ffff]"
)
_NOT_FIRST = "ーぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ々ゝゞヽヾ"  # of a line, beside closing punctuation


def clusters(text: str) -> Iterator[str]:
    """What a reader counts as one letter: a base with its marks, a flag, a joined emoji, a conjunct.

    Example:
        >>> [len(letter) for letter in clusters("ae\\u0301क्षि")]
        [1, 2, 4]
    """
    start, flags = 0, 0
    for i in range(1, len(text)):
        before, letter = text[i - 1], text[i]
        flags = flags + 1 if _is_flag(before) else 0
        if not _joins(before, letter) and not (flags % 2 and _is_flag(letter)):
            yield text[start:i]
            start = i
    if text:
        yield text[start:]


def _is_flag(letter: str) -> bool:
    return "\U0001f1e6" <= letter <= "\U0001f1ff"


def _joins(before: str, letter: str) -> bool:
    if letter.isascii():
        return before + letter == "\r\n"
    if unicodedata.category(letter)[0] == "M" or letter in "\u200c\u200d" or before == _JOINER:
        return True
    if "\U0001f3fb" <= letter <= "\U0001f3ff" or "\U000e0020" <= letter <= "\U000e007f":  # skin tones, tags
        return before >= "\u2190"
    if unicodedata.combining(before) == 9:  # a virama joins two consonants
        return unicodedata.category(letter) == "Lo"
    return "\u1160" <= letter <= "\u11ff" and "\u1100" <= before <= "\u11ff"  # parts of a Korean syllable


def pieces(word: str) -> list[str]:
    """The parts of a word between which a line may break: Chinese and Japanese have no spaces."""
    parts: list[list[str]] = []
    for cluster in clusters(word):
        if parts and not _may_break(parts[-1][-1], cluster):
            parts[-1].append(cluster)
        else:
            parts.append([cluster])
    return ["".join(part) for part in parts]


def _may_break(before: str, cluster: str) -> bool:
    first = cluster[0]
    if before.isascii() and first.isascii():
        return False
    if unicodedata.category(before[0]) in ("Ps", "Pi") or unicodedata.category(first) in ("Pe", "Pf", "Po"):
        return False
    return first not in _NOT_FIRST and (_is_wide(before) or _is_wide(cluster))


def _is_wide(cluster: str) -> bool:
    wide = unicodedata.east_asian_width(cluster[0]) in "WF" and not _HANGUL.match(cluster)
    return wide or bool(_NO_SPACES.match(cluster))


def language(text: str) -> str:
    """Whose form of a Chinese character is meant: Japanese with kana beside it, Korean with hangul, else Chinese."""
    return "Japanese" if _KANA.search(text) else "Korean" if _HANGUL.search(text) else "Chinese"


@lru_cache(maxsize=4096)
def script(letter: str) -> str:
    """The script of a letter, as a reader calls it: `Latin`, `CJK`, `Devanagari`, `emoji`.

    Example:
        >>> script("a"), script("圆"), script("ह"), script("🐶"), script("\\ue000")
        ('Latin', 'CJK', 'Devanagari', 'emoji', '')
    """
    if _CJK.match(letter):
        return "CJK"
    name = unicodedata.name(letter, "")
    if letter >= "\u2190" and unicodedata.category(letter) in ("So", "Sk", "Sm", "Cn"):
        return ("emoji" if letter >= "\U0001f000" else "symbol") if name else ""
    kind = re.split(
        r" (?:CAPITAL |SMALL |VOWEL |INDEPENDENT )*(?:LETTER|SIGN|SYLLA|DIGIT|MARK|CHARACTER|SYMBOL|HIEROGLYPH)", name
    )[0]
    return kind.title()
