"""Overlays against matplotlib's colours and numpy's arithmetic."""

import sys
from importlib.util import find_spec

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.launching import gpu
from torch_featviz.picture import Scale, overlay, reserved

GRAY = np.array([0.299, 0.587, 0.114])
interpreted = pytest.mark.skipif(
    torch.cuda.is_available() or find_spec("triton") is None, reason="the kernel cannot be interpreted here"
)


@pytest.mark.parametrize(
    ("cmap", "symmetric"), [("RdBu_r", True), ("PuOr_r", True), ("viridis", False), ("gray", False)]
)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gray", [True, False])
def test_equals_matplotlib_over_the_image(cmap, symmetric, alpha, gray):
    images, heat = torch.rand(2, 3, 9, 7), torch.randn(2, 9, 7)
    low = -2.5 if symmetric else -1.0
    scale = Scale(symmetric=symmetric, vmin=low, vmax=2.5)
    heat = heat.clamp(low, 2.5)
    made = overlay(images, heat, alpha=alpha, scale=scale, cmap=cmap, gray=gray)

    n = 255 if symmetric else 256
    norm = matplotlib.colors.Normalize(low, 2.5)
    table = matplotlib.colormaps[cmap].resampled(n)(np.arange(n), bytes=True)[:, :3] / 255
    colors = table[np.rint(norm(heat.numpy()) * (n - 1)).astype(int)]
    under = images.permute(0, 2, 3, 1).numpy()
    under = np.repeat((under @ GRAY)[..., None], 3, axis=-1) if gray else under
    expected = 255 * ((1 - alpha) * under + alpha * colors)
    assert made.shape == (2, 3, 9, 7)
    assert made.dtype == torch.uint8
    assert np.abs(made.permute(0, 2, 3, 1).numpy() - expected).max() <= 1.0


def test_several_classes_share_one_scale():
    images, heat = torch.rand(2, 1, 5, 5), torch.randn(2, 4, 5, 5)
    heat[:, 0] /= 4  # the widest values are another class's
    whole = overlay(images, heat)
    scale = Scale(symmetric=True).fit(heat)
    assert whole.shape == (2, 4, 3, 5, 5)
    for k in range(4):
        assert torch.equal(whole[:, k], overlay(images, heat[:, k], scale=scale))
    assert not torch.equal(whole[:, 0], overlay(images, heat[:, 0]))
    apart = overlay(images, heat, scale=Scale(symmetric=True, per="kernel"))
    assert torch.equal(apart[1, 2], overlay(images[1:], heat[1:, 2])[0])


@given(st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=12), st.floats(0.05, 1), st.floats(0, 1, width=32))
def test_colours_follow_values(values, alpha, level):
    """Along rising values red never falls while positive, blue never rises: the map's own order, over any image."""
    heat = torch.tensor(sorted(values))[None, None]
    image = torch.full((1, 1, 1, len(values)), level)
    made = overlay(image, heat, alpha=alpha, scale=Scale(vmin=-4, vmax=4), cmap="gray")[0, 0, 0].int()
    assert bool((made.diff() >= 0).all())
    strictly = overlay(image, heat, alpha=1, scale=Scale(vmin=-4, vmax=4), cmap="gray")[0, 0, 0].int()
    far = heat[0, 0].diff() > 3 * 8 / 255  # matplotlib cuts bytes off: neighbours may be equal
    assert bool((strictly.diff()[far] > 0).all())


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_zero_and_constant_maps_are_one_colour(value):
    made = overlay(torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), value), alpha=1)
    assert made.flatten(2).unique(dim=2).shape[2] == 1
    if value == 0:
        assert made[0, :, 0, 0].tolist() == [247, 247, 247]  # the neutral middle


@pytest.mark.parametrize("per", ["layer", "kernel", "filter"])
def test_large_batches_are_drawn_in_parts(per, monkeypatch):
    images, heat = torch.rand(5, 3, 6, 4), torch.randn(5, 2, 6, 4)
    scale = Scale(symmetric=True, per=per)
    whole = overlay(images, heat, scale=scale)
    monkeypatch.setattr(sys.modules[Scale.__module__.replace("scale", "overlay")], "_BLOCK", 100)
    assert torch.equal(overlay(images, heat, scale=scale), whole)


def test_nan_infinite_and_clipped_values_cover_the_image_in_reserved_colours():
    heat = torch.tensor([[[0.0, float("nan"), float("inf"), -float("inf"), 9.0, -9.0]]])
    made = overlay(torch.rand(1, 3, 1, 6), heat, alpha=0.2, scale=Scale(symmetric=True, vmin=-1, vmax=1))
    colors = reserved("RdBu_r")
    for at, reason in enumerate(("nan", "posinf", "neginf", "over", "under"), start=1):
        assert tuple(made[0, :, 0, at].tolist()) == colors[reason]
    whole = overlay(torch.rand(1, 3, 2, 2), torch.full((1, 2, 2), float("nan")))
    assert {tuple(pixel) for pixel in whole[0].flatten(1).t().tolist()} == {colors["nan"]}


def test_contours_run_round_what_is_at_least_the_level():
    heat = torch.zeros(1, 7, 7)
    heat[0, 2:5, 2:5] = 1
    made = overlay(torch.ones(1, 3, 7, 7), heat, contours=[0.5])[0].sum(0)
    black = {(y, x) for y in range(7) for x in range(7) if made[y, x] == 0}
    assert black == {(y, x) for y in range(2, 5) for x in range(2, 5)} - {(3, 3)}


def test_inputs_are_left_alone():
    images, heat = torch.rand(1, 3, 4, 4), torch.randn(1, 4, 4)
    before = images.clone(), heat.clone()
    overlay(images, heat, contours=[0.1])
    assert torch.equal(images, before[0])
    assert torch.equal(heat, before[1])


@pytest.mark.parametrize(
    ("images", "heat", "options", "error", "message"),
    [
        (
            torch.rand(3, 4, 4),
            torch.rand(1, 4, 4),
            {},
            ShapeError,
            r"'b c H W', got shape \(3, 4, 4\); add a batch axis",
        ),
        (torch.rand(1, 3, 4, 4), torch.rand(1, 4, 5), {}, ShapeError, r"H W = \(4, 4\), got shape \(1, 4, 5\)"),
        (torch.rand(1, 2, 4, 4), torch.rand(1, 4, 4), {}, ShapeError, "'b 1 h w' or 'b 3 h w'"),
        ([1], torch.rand(1, 4, 4), {}, DtypeError, "images must be a tensor"),
        (torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4), {"alpha": 2}, OptionError, "from 0 to 1, got 2"),
        (torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4), {"cmap": "viridis"}, OptionError, "needs a diverging map"),
        (torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4), {"value_range": "x"}, OptionError, "value_range must be one of"),
    ],
)
def test_bad_input(images, heat, options, error, message):
    with pytest.raises(error, match=message):
        overlay(images, heat, **options)


def test_no_byte_overflows():
    heat = torch.linspace(0, 1, 256).view(1, 1, 256)
    for step in range(101):
        made = overlay(torch.ones(1, 3, 1, 256), heat, alpha=step / 100, scale=Scale(vmin=0, vmax=1), cmap="gray")
        assert bool((made[0, 0, 0].int().diff() >= 0).all()), step


def test_scales_fitted_on_maps_or_on_one():
    images, heat = torch.rand(3, 3, 8, 8), torch.randn(3, 8, 8)
    fitted = overlay(images, heat, scale=Scale(symmetric=True, per="kernel").fit(heat))
    assert torch.equal(fitted, overlay(images, heat, scale=Scale(symmetric=True, per="kernel")))


@interpreted
def test_the_kernel_rounds_halves_to_even(monkeypatch):
    images, heatmaps = torch.zeros(1, 3, 1, 4), torch.tensor([[[0.5, 0.1, 0.9, 1.0]]])
    scales = [Scale(vmin=0, vmax=1), Scale(symmetric=True, vmax=2.0)]  # 127.5 of 255, and 158.75 of 254
    scales += [Scale(vmin=0, vmax=102), Scale(symmetric=True, vmax=127)]  # 1.25 of 255, and 127.5 of 254
    expected = [overlay(images, heatmaps, scale=scale) for scale in scales]
    monkeypatch.setattr(gpu, "available", lambda _device: True)
    assert all(
        torch.equal(overlay(images, heatmaps, scale=scale), made) for scale, made in zip(scales, expected, strict=True)
    )


@interpreted
@pytest.mark.filterwarnings("ignore:overlay marks", "ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
@settings(max_examples=max(8, settings().max_examples // 10), deadline=None)
@given(data=st.data())
def test_the_kernel_draws_the_same(data):
    """Every bit of it, interpreted."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    odd = np.array([np.nan, np.inf, -np.inf, 1.7, -0.3, 0.0, 1e30, -1e-30], np.float32)

    def drawn(*shape):
        values = rng.standard_normal(shape).astype(np.float32) * data.draw(st.sampled_from([1, 1e-30, 1e25]))
        return torch.from_numpy(np.where(rng.random(shape) < 0.1, rng.choice(odd, shape), values))

    batch, classes, height, width = (data.draw(st.integers(1, most)) for most in (2, 3, 20, 40))
    images = drawn(batch, data.draw(st.sampled_from([1, 3])), height, width).abs().clamp(max=1.7)
    heatmaps = drawn(batch, classes, height, width)
    if data.draw(st.booleans()):
        images, heatmaps = images.transpose(2, 3), heatmaps.transpose(2, 3)
    scales = [Scale(symmetric=True, vmax=1.5), Scale(symmetric=True, vmax=0), Scale(vmin=-2, vmax=2e30)]
    scales += [Scale(vmin=1e-30, vmax=2e-30), Scale(symmetric=True, per="kernel"), Scale(per="kernel")]
    scale = data.draw(st.sampled_from(scales))
    how = {
        "alpha": data.draw(st.sampled_from([0.0, 0.3, 1.0])),
        "gray": data.draw(st.booleans()),
        "value_range": data.draw(st.sampled_from([None, "signed", lambda images: 1 - images])),
        "contours": data.draw(st.sampled_from([(), (0.5,)])),
    }
    expected = overlay(images, heatmaps, scale=scale, **how)
    launched = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "available", lambda _device: True)
        launch = gpu.launch
        patch.setattr(gpu, "launch", lambda *arguments, **constants: launched.append(launch(*arguments, **constants)))
        assert torch.equal(overlay(images, heatmaps, scale=scale, **how), expected)
    assert len(launched) == 1
