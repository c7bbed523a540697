"""Rollout, distances and spread of attention: against NumPy written as nested loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.explain.rollout import distance_table, distances, rollout, spread
from torch_featviz.model.layout import Layout


def weights(seed, *shape):
    """Rows of random weights that sum to 1."""
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (3 * scores).softmax(-1)


def rollout_of_one(layers):
    """Of one image, `heads n n` of each layer."""
    n = layers[0].shape[-1]
    product = np.eye(n)
    for layer in layers:
        mixed = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                mixed[i, j] = sum(head[i, j] for head in layer) / len(layer) + (i == j)
            mixed[i] /= sum(mixed[i])
        after = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                after[i, j] = sum(mixed[i, k] * product[k, j] for k in range(n))
        product = after
    return product


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_rollout_is_the_product_of_layers(images, heads, tokens, layers, seed):
    attention = [weights(seed + k, images, heads, tokens, tokens) for k in range(layers)]
    found = rollout(attention)
    for i in range(images):
        np.testing.assert_allclose(found[i], rollout_of_one([layer[i].numpy() for layer in attention]), atol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones(images, tokens, dtype=torch.float64))
    torch.testing.assert_close(rollout([layer.mean(1) for layer in attention]), found)


def test_rollout_leads_from_the_last_layer_to_the_first():
    """Token 0 looks at 1 in the last layer, which looked at 2 in the first: so 0 holds some of 2."""
    first, last = torch.eye(3).repeat(1, 1, 1, 1), torch.eye(3).repeat(1, 1, 1, 1)
    first[0, 0, 1], last[0, 0, 0] = torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 1, 0])
    assert rollout([first, last])[0, 0].tolist() == [0.5, 0.25, 0.25]
    assert rollout([last, first])[0, 0].tolist() == [0.5, 0.5, 0]


def test_what_rollout_refuses():
    with pytest.raises(OptionError, match="needs the attention of at least one layer"):
        rollout([])
    with pytest.raises(ShapeError, match=r"as many queries as keys; layer 1 has shape \(1, 2, 1, 3\)"):
        rollout([torch.ones(1, 2, 3, 3), torch.ones(1, 2, 1, 3)])
    with pytest.raises(ShapeError, match="layer 1 has 2, those before it 3; choose layers of one size"):
        rollout([torch.ones(1, 2, 3, 3), torch.ones(1, 2, 2, 2)])


def distances_by_loops(attention, prefix, grid, size):
    rows, columns = grid
    high, wide = size[0] / rows, size[1] / columns
    found = []
    for head in range(attention.shape[1]):
        total = far = 0.0
        for image in range(len(attention)):
            for q in range(rows * columns):
                for k in range(rows * columns):
                    weight = attention[image, head, prefix + q, prefix + k]
                    down, across = q // columns - k // columns, q % columns - k % columns
                    total += weight
                    far += weight * math.hypot(down * high, across * wide)
        found.append(far / total)
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    st.integers(0, 5),
    st.integers(0, 2),
    st.tuples(st.integers(4, 40), st.integers(4, 40)),
    st.integers(0, 99),
)
def test_distances_are_means_over_pairs_of_places(grid, prefix, suffix, size, seed):
    count = prefix + grid[0] * grid[1] + suffix
    attention = weights(seed, 2, 3, count, count)
    found = distances(attention, Layout(grid, prefix, suffix), size)
    np.testing.assert_allclose(found, distances_by_loops(attention.numpy(), prefix, grid, size), atol=1e-9)


def test_a_head_that_looks_at_no_place_has_no_distance():
    only_class = torch.zeros(1, 1, 5, 5)
    only_class[..., 0] = 1
    assert distances(only_class, Layout((2, 2), prefix=1), (8, 8)).isnan().all()
    itself = torch.eye(4).repeat(1, 1, 1, 1)
    assert distances(itself, Layout((2, 2)), (8, 8)).tolist() == [0]


def test_distances_are_in_pixels_of_the_image():
    table = distance_table((2, 3), (20, 60))
    assert table[0].tolist() == [0, 20, 40, 10, math.hypot(10, 20), math.hypot(10, 40)]
    assert torch.equal(table, table.T)


def test_spread_is_a_number_of_places():
    assert spread(torch.full((7,), 0.1)).item() == pytest.approx(7)
    assert spread(torch.tensor([0.0, 0.5, 0.0])).item() == 1
    some = weights(0, 9)
    by_loop = math.exp(-sum(p * math.log(p) for p in some.tolist()))
    assert spread(some / 3).item() == pytest.approx(by_loop)
    assert spread(torch.zeros(3)).isnan()
