"""Numbers as text: float16 in two planes, a power of two beside them; and fair shares of the room."""

import base64
import io
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from torch_featviz.atlas.pack import Blobs, exponent_of, fair_shares, plain


def read(text, exponent):
    """What a reader that knows the format only by its description makes of it."""
    data = zlib.decompress(base64.b64decode(text))
    n = len(data) // 2
    words = [data[i] * 256 + data[n + i] for i in range(n)]
    return np.array(words, np.uint16).view(np.float16).astype(np.float64) * 2.0**exponent


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e5, 1e30])
def test_values_keep_eleven_bits_whatever_their_size(size):
    values = torch.randn(500, dtype=torch.float64).float() * size
    blobs = Blobs()
    exponent = exponent_of(values)
    found = read(blobs.texts[blobs.numbers(values, exponent)], exponent)
    expected = values.double().numpy()
    assert np.abs(found - expected).max() <= np.abs(expected).max() * 2.0**-11
    large = np.abs(expected) > np.abs(expected).max() * 1e-6
    assert (np.abs(found - expected)[large] <= np.abs(expected)[large] * 2.0**-11).all()


def test_what_is_not_finite_and_nothing_at_all():
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -3.0])
    blobs = Blobs()
    found = read(blobs.texts[blobs.numbers(values, exponent_of(values))], exponent_of(values))
    assert np.array_equal(found, values.numpy(), equal_nan=True)
    assert exponent_of(torch.zeros(3)) == exponent_of(torch.full((2,), torch.nan)) == 0


def test_the_largest_number_is_not_infinite():
    end = torch.finfo(torch.float32).max
    values = torch.tensor([end, -end, torch.inf, 1e38])
    blobs = Blobs()
    found = read(blobs.texts[blobs.numbers(values, exponent_of(values))], exponent_of(values)).astype(np.float32)
    assert np.isinf(found).tolist() == [False, False, True, False]
    assert np.abs(found[[0, 1, 3]] / values.numpy()[[0, 1, 3]] - 1).max() <= 2.0**-11


def test_a_picture_that_is_too_long_for_webp():
    pixels = torch.randint(0, 256, (3, 1, 16500), dtype=torch.uint8)
    blobs = Blobs()
    found = blobs.picture(pixels, "long")
    with Image.open(io.BytesIO(base64.b64decode(blobs.texts[found["blob"]]))) as image:
        assert Image.MIME[image.format] == found["type"] == "image/png"
        assert np.array_equal(np.asarray(image), pixels.permute(1, 2, 0).numpy())


def test_a_picture_is_exact_unless_it_may_be_lossy():
    pixels = torch.randint(0, 256, (3, 9, 14), dtype=torch.uint8)
    blobs = Blobs()
    found = blobs.picture(pixels, "noise")
    assert (found["width"], found["height"], found["alt"]) == (14, 9, "noise")
    with Image.open(io.BytesIO(base64.b64decode(blobs.texts[found["blob"]]))) as image:
        assert Image.MIME[image.format] == found["type"]
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels.permute(1, 2, 0).numpy())
    blobs.picture(pixels.repeat(1, 9, 9), "noise", lossy=True)
    blobs.picture(pixels.repeat(1, 9, 9), "noise")
    assert blobs.letters(1) == len(blobs.texts[1]) + len(blobs.texts[2])
    blobs.cut(1)
    assert len(blobs.texts) == 1


@given(st.lists(st.integers(0, 1000), max_size=12), st.integers(0, 5000))
def test_shares_are_fair(sizes, total):
    share = fair_shares(sizes, total)
    used = sum(min(size, share) for size in sizes)
    assert used <= total or (share == max(sizes) and sum(sizes) <= total)
    if any(size > share for size in sizes):  # one more for each would be too much
        assert sum(min(size, share + 1) for size in sizes) > total


def test_plain_is_json():
    assert plain({1: [float("inf"), -float("inf"), None, "a", True]}) == {"1": ["inf", "-inf", None, "a", True]}
