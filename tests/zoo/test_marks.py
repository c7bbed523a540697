import numpy as np
import pytest

from torch_featviz.zoo.marks import draw_mark


@pytest.mark.parametrize("label", [0, 1])
def test_the_same_state_draws_the_same_bytes(label):
    one, two = (draw_mark(label, np.random.default_rng(7)) for _ in "ab")
    assert one.dtype == np.uint8
    assert np.array_equal(one, two)
