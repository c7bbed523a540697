"""Principal components against NumPy's singular values, and kept variance against a least-squares fit per channel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from torch_featviz.inspect import components
from torch_featviz.inspect.components import kept_by, principal


def maps_of(seed, images, channels, height, width):
    """Channels of different variances and offsets, some of which go together."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(images, channels, height, width)) * random.uniform(0.1, 4, (channels, 1, 1))
    values[:, -1] += values[:, 0]
    return values + random.normal(size=(channels, 1, 1))


def rows_of(maps):
    return np.array([image[:, row, column] for image in maps for row in range(maps.shape[2])
                     for column in range(maps.shape[3])])  # fmt: skip


def by_numpy(maps, n):
    """Directions, shares, and the mean, by the singular values of the centred rows."""
    rows = rows_of(maps)
    mean = rows.mean(0)
    _, singular, directions = np.linalg.svd(rows - mean, full_matrices=False)
    for direction in directions:
        direction *= np.sign(direction[np.abs(direction).argmax()])
    return directions[:n], (singular**2 / (singular**2).sum())[:n], mean


SIZES = st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 4), st.integers(2, 5))


@given(st.integers(0, 2**32 - 1), SIZES)
def test_components_are_those_of_numpy(seed, size):
    maps = maps_of(seed, *size)
    found = principal(torch.from_numpy(maps))
    n = min(3, size[1], size[0] * size[2] * size[3] - 1)
    directions, shares, mean = by_numpy(maps, 4)
    np.testing.assert_allclose(found.shares[:n], shares[:n], atol=1e-12)
    np.testing.assert_allclose(found.mean, mean, atol=1e-12)
    values = found.of(torch.from_numpy(maps))
    for i in range(n):
        apart = np.abs(np.delete(shares, i) - shares[i]).min()
        if apart < 1e-3:  # equal variances have no direction of their own
            continue
        loading = np.sort(np.abs(directions[i]))
        if loading[-1] - loading[-2] > 1e-5:
            np.testing.assert_allclose(found.directions[i], directions[i], atol=1e-7)
            expected = np.einsum("bkhw,k->bhw", maps - mean[:, None, None], directions[i])
            np.testing.assert_allclose(values[:, i], expected, atol=1e-5)


def test_the_same_in_parts_as_at_once(monkeypatch):
    maps = torch.randn(7, 5, 6, 4, dtype=torch.float64)
    whole = principal(maps)
    monkeypatch.setattr(components, "_AT_ONCE", 1)
    parts = principal(maps)
    torch.testing.assert_close(parts.directions, whole.directions)
    torch.testing.assert_close(parts.of(maps), whole.of(maps))
    assert kept_by(maps, maps.mean(1)) == pytest.approx(by_lines(maps.numpy(), maps.mean(1).numpy()))


class Largest(TorchDispatchMode):
    """Watches how large tensors become."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.dtype == torch.float64:
            self.numbers = max(self.numbers, output.numel())
        return output


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch):
    """Of 64 images of 196 places and 768 channels only a part is in float64 at any time."""
    monkeypatch.setattr(components, "_AT_ONCE", 2048)
    largest = []
    for count in (4, 64):
        maps = torch.randn(count, 32, 8, 8)
        with Largest() as seen:
            basis = principal(maps)
            one = basis.of(maps)[:, 0]
            kept_by(maps, one)
        largest.append(seen.numbers)
    assert largest[0] == 2048
    assert largest[1] <= max(2048, one.numel())


def test_more_channels_than_places_and_fewer_than_components():
    wide = maps_of(1, 1, 40, 2, 3)
    directions, shares, _ = by_numpy(wide, 3)
    found = principal(torch.from_numpy(wide))
    np.testing.assert_allclose(found.directions, directions, atol=1e-9)
    np.testing.assert_allclose(found.shares, shares, atol=1e-12)
    line = principal(torch.arange(4.0).view(1, 1, 2, 2))
    assert line.shares == [1, 0, 0]
    assert line.directions.tolist() == [[1], [0], [0]]
    assert line.of(torch.arange(4.0).view(1, 1, 2, 2))[0, 0].flatten().tolist() == [-1.5, -0.5, 0.5, 1.5]


@given(st.integers(0, 2**32 - 1))
def test_the_sign_does_not_depend_on_the_sign_of_the_maps(seed):
    maps = torch.from_numpy(maps_of(seed, 2, 5, 3, 3))
    for found in (principal(maps), principal(-maps)):
        for direction in found.directions:
            assert direction[direction.abs().argmax()] > 0


def test_of_equally_large_loadings_the_first_is_positive():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    maps = torch.stack([-values, values + 1e-9 * torch.randn(50), -values]).view(1, 3, 5, 10)
    np.testing.assert_allclose(principal(maps).directions[0], np.array([1, -1, 1]) / np.sqrt(3), atol=1e-6)


def test_what_does_not_vary_has_no_components():
    found = principal(torch.full((2, 5, 3, 3), 7.0))
    assert found.shares == [0, 0, 0]
    assert not found.of(torch.full((2, 5, 3, 3), 7.0)).any()
    rank_one = torch.rand(1, 1, 6, 6) * torch.rand(1, 4, 1, 1)
    assert principal(rank_one).shares == [pytest.approx(1), 0, 0]


def test_places_that_are_not_finite_or_left_out_have_no_part():
    maps = torch.from_numpy(maps_of(3, 2, 4, 3, 3))
    spoilt = maps.clone()
    spoilt[0, 1, 0, 0], spoilt[1, 2, 2, 1] = torch.nan, torch.inf
    spoilt[1, :, 0, 0] = 1e6
    without = torch.zeros(2, 3, 3, dtype=torch.bool)
    without[1, 0, 0] = True
    found = principal(spoilt, without=without)
    rows = np.delete(rows_of(maps.numpy()), [0, 9, 16], axis=0)
    _, singular, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(found.shares, (singular**2 / (singular**2).sum())[:3])
    np.testing.assert_allclose(found.directions.abs(), np.abs(directions[:3]), atol=1e-9)
    assert found.count == 15
    nan = found.of(spoilt).isnan().all(1)
    assert nan.nonzero().tolist() == [[0, 0, 0], [1, 2, 1]]
    assert principal(torch.full((1, 2, 2, 2), torch.nan)).shares == [0, 0, 0]


def by_lines(maps, reduced):
    """The variance that a line through each channel explains, over that of the channels."""
    line = np.stack([reduced.reshape(-1), np.ones(reduced.size)], 1)
    explained = whole = 0.0
    for channel in rows_of(maps).T:
        slope = np.linalg.lstsq(line, channel, rcond=None)[0]
        explained += np.var(line @ slope)
        whole += np.var(channel)
    return explained / whole


REDUCED = {
    "mean": lambda maps: maps.mean(1),
    "max": lambda maps: maps.amax(1),
    "rms": lambda maps: maps.square().mean(1).sqrt(),
    "pc1": lambda maps: principal(maps).of(maps)[:, 0],
}


@given(st.integers(0, 2**32 - 1), SIZES, st.sampled_from(list(REDUCED)))
def test_kept_variance_is_that_of_lines_through_the_channels(seed, size, how):
    maps = maps_of(seed, *size)
    reduced = REDUCED[how](torch.from_numpy(maps))
    found = kept_by(torch.from_numpy(maps), reduced)
    assert found == pytest.approx(by_lines(maps, reduced.numpy().astype(np.float64)), abs=1e-6)
    assert found <= principal(torch.from_numpy(maps)).shares[0] + 1e-9, "no map keeps more than the first component"


def test_kept_variance_at_its_ends():
    maps = torch.rand(1, 3, 4, 4)
    assert kept_by(maps, torch.zeros(1, 4, 4)) == 0
    assert kept_by(torch.full((1, 3, 4, 4), 0.1), torch.full((1, 4, 4), 0.1)) == 1
    spoilt = maps.clone()
    spoilt[0, 1, 2, 3] = torch.nan
    kept = torch.ones(16, dtype=torch.bool)
    kept[11] = False
    rest = maps.flatten(2)[:, :, kept].view(1, 3, 3, 5)
    assert kept_by(spoilt, spoilt.mean(1)) == pytest.approx(kept_by(rest, rest.mean(1)))
