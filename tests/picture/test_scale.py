"""Scale and normalize against numpy, and what must hold for any data."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torch_featviz.errors import DeviceError, DtypeError, OptionError, ShapeError
from torch_featviz.picture import KernelNormalizer, Scale, normalize, overlay

floats32 = st.floats(width=32, allow_nan=True, allow_infinity=True)
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=floats32)
finite = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=st.floats(-1e6, 1e6, width=32)
)


def captum_threshold(values, share):
    """Captum's `_cumulative_sum_threshold`, as it is written there."""
    ordered = np.sort(np.abs(values).flatten())
    heap = np.cumsum(ordered, dtype=np.float64)
    return ordered[np.where(heap >= heap[-1] * share)[0][0]]


@given(finite)
def test_min_max_agrees_with_numpy(a):
    x = a.astype(np.float64)
    span = x.max() - x.min()
    expected = (x - x.min()) / span if span else np.zeros_like(x)
    np.testing.assert_allclose(Scale()(torch.from_numpy(x)).numpy(), expected, atol=1e-12)


@given(finite)
def test_symmetric_agrees_with_numpy_and_zero_is_exactly_the_middle(a):
    x = torch.from_numpy(a)
    reach = np.abs(a).max()
    expected = a / reach / 2 + 0.5 if reach else np.full_like(a, 0.5)
    unit = Scale(symmetric=True)(x)
    np.testing.assert_allclose(unit.numpy(), expected, atol=1e-6)
    assert (unit[x == 0] == 0.5).all()


@pytest.mark.parametrize("symmetric", [True, False])
@given(a=arrays)
def test_any_data_gives_unit_values_and_keeps_nan_and_infinities(symmetric, a):
    x = torch.from_numpy(a)
    unit = Scale(symmetric=symmetric)(x)
    assert unit.shape == x.shape
    assert unit.isnan().equal(x.isnan())
    assert unit.isinf().equal(x.isinf())
    inside = unit[x.isfinite()]
    assert ((inside >= 0) & (inside <= 1)).all()


@given(arrays)
def test_inputs_are_never_changed(a):
    x = torch.from_numpy(a.copy())
    for scale in (Scale(), Scale(symmetric=True, quantile=0.9), Scale(quantile=0.9, by="mass")):
        scale(x)
        normalize(x, scale)
    np.testing.assert_array_equal(x.numpy(), a)


@given(hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_order_is_kept(a):
    x = torch.from_numpy(a).sort().values
    unit = Scale()(x)
    assert (unit.diff() >= 0).all()


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.booleans())
def test_a_constant_map_is_one_defined_value(value, symmetric):
    unit = Scale(symmetric=symmetric)(torch.full((2, 3), value))
    if symmetric:
        assert (unit == {0: 0.5}.get(value, 1.0 if value > 0 else 0.0)).all()
    else:
        assert (unit == 0).all()


@pytest.mark.parametrize("top", [3.4e38, 1e30, 1.0, 1e-30, 1e-44])
@pytest.mark.parametrize("symmetric", [True, False])
def test_huge_and_tiny_values_neither_overflow_nor_vanish(top, symmetric):
    x = torch.tensor([-top, 0.0, top])
    assert Scale(symmetric=symmetric)(x).tolist() == [0.0, 0.5, 1.0]


def test_far_outside_a_tiny_range_is_outside_and_not_infinite():
    unit = Scale(vmin=0, vmax=1e-30)(torch.tensor([3e38, -3e38, float("inf")]))
    assert unit[0] > 1
    assert unit[1] < 0
    assert unit.isinf().tolist() == [False, False, True]


@pytest.mark.parametrize("vmax", [1e300, 0.5])
def test_ends_beyond_the_dtype_are_no_trouble(vmax):
    assert Scale(vmin=0, vmax=vmax)(torch.tensor([0.0, 0.25])).isfinite().all()


def test_a_declared_range_of_one_value_marks_what_is_off_it():
    unit = Scale(vmin=1, vmax=1)(torch.tensor([0.0, 1.0, 2.0]))
    assert unit[0] < 0
    assert unit[1] == 0
    assert unit[2] > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float32])
def test_narrow_dtypes_are_computed_in_float32(dtype):
    x = torch.tensor([0, 1]).to(dtype)
    assert Scale()(x).equal(torch.tensor([0.0, 1.0]))


def test_float64_stays():
    assert Scale()(torch.arange(3.0, dtype=torch.float64)).dtype == torch.float64


def test_gradients_do_not_follow_into_a_picture():
    assert not Scale()(torch.ones(2, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("per", "axes"),
    [("kernel", (2, 3)), ("filter", (1, 2, 3)), ("layer", (0, 1, 2, 3))],
    ids=lambda v: str(v),
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_per_kernel_filter_layer_agree_with_numpy(per, axes, symmetric):
    x = torch.randn(4, 3, 5, 6)
    a = x.double().numpy()
    low, high = a.min(axes, keepdims=True), a.max(axes, keepdims=True)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    unit = Scale(per=per, symmetric=symmetric)(x)
    np.testing.assert_allclose(unit.numpy(), (a - low) / (high - low), atol=1e-6)


def test_a_kernel_scale_works_on_planes_without_other_axes():
    assert Scale(per="kernel")(torch.tensor([[0.0, 2.0]])).tolist() == [[0.0, 1.0]]


def test_one_fitted_scale_serves_many_tensors_unchanged():
    first, second = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])
    scale = Scale().fit(first, second)
    assert (scale.vmin, scale.vmax) == (0.0, 3.0)
    assert scale.fit(second * 100).vmax == 3.0
    assert scale(first).tolist() == pytest.approx([0, 2 / 3])
    assert Scale().fit(first)(second).tolist() == [0.5, 1.5]


def test_tensors_that_share_a_kernel_scale_share_it_kernel_by_kernel():
    scale = Scale(per="kernel").fit(torch.tensor([[[1.0]], [[5.0]]]), torch.tensor([[[3.0]], [[4.0]]]))
    assert scale.vmin.flatten().tolist() == [1, 4]
    assert scale.vmax.flatten().tolist() == [3, 5]


@pytest.mark.parametrize(
    ("scale", "ends"),
    [
        (Scale(vmin=0), (0, 4)),
        (Scale(vmax=10), (-2, 10)),
        (Scale(vmin=1, vmax=2), (1, 2)),
        (Scale(symmetric=True), (-4, 4)),
        (Scale(symmetric=True, vmax=9), (-9, 9)),
        (Scale(symmetric=True, vmin=-9), (-9, 9)),
        (Scale(vmin=7), (7, 7)),
        (Scale(vmax=-7), (-7, -7)),
    ],
)
def test_given_ends_are_kept_and_the_others_fitted(scale, ends):
    fitted = scale.fit(torch.tensor([-2.0, 4.0, float("nan"), float("inf")]))
    assert (fitted.vmin, fitted.vmax) == ends
    assert fitted.fitted


def test_given_ends_are_kept_per_kernel_too():
    fitted = Scale(vmin=0, per="kernel").fit(torch.tensor([[[-3.0]], [[5.0]]]))
    assert fitted.vmin == 0
    assert fitted.vmax.flatten().tolist() == [0, 5]


def test_data_without_one_finite_value_is_a_range_of_zero():
    for scale in (
        Scale(),
        Scale(quantile=0.5),
        Scale(symmetric=True, quantile=0.5),
        Scale(quantile=0.5, by="mass"),
    ):
        fitted = scale.fit(torch.full((3,), float("nan")))
        assert (fitted.vmin, fitted.vmax) == (0, 0)


@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=32)),
    st.sampled_from([0.5, 0.9, 0.98, 0.07]),
)
def test_quantile_by_mass_is_captums_rule(a, share):
    fitted = Scale(symmetric=True, quantile=share, by="mass").fit(torch.from_numpy(a))
    assert fitted.vmax == captum_threshold(a, share)
    plain = Scale(quantile=share, by="mass").fit(torch.from_numpy(a))
    assert plain.vmax == min(a.max(), captum_threshold(a, share))
    assert plain.vmin == max(a.min(), -captum_threshold(a, share))


@given(
    hnp.arrays(np.float32, st.integers(1, 80), elements=st.floats(-100, 100, width=32)),
    st.floats(0.01, 0.999),
)
def test_quantile_by_count_holds_its_share_and_no_more_than_it_must(a, share):
    x = torch.from_numpy(a)
    reach = Scale(symmetric=True, quantile=share).fit(x).vmax
    assert (np.abs(a) <= reach).mean() >= share - 1e-9
    assert (np.abs(a) < reach).mean() < share
    low, high = (getattr(Scale(quantile=share).fit(x), end) for end in ("vmin", "vmax"))
    assert ((a >= low) & (a <= high)).mean() >= share - 1e-9
    one_sided = Scale(vmin=-100, quantile=share).fit(x).vmax
    assert (a <= one_sided).mean() >= share - 1e-9


@pytest.mark.parametrize("by", ["count", "mass"])
def test_quantile_looks_at_finite_values_only_and_per_kernel(by):
    x = torch.rand(3, 4, 4) + 1
    x[0, 0] = float("nan")
    x[1, 0, 0] = float("inf")
    together = Scale(quantile=0.7, by=by, per="kernel", symmetric=True).fit(x)
    for i in range(3):
        alone = Scale(quantile=0.7, by=by, symmetric=True).fit(x[i][x[i].isfinite()])
        assert together.vmax[i].item() == alone.vmax


def test_quantiles_have_no_limit_on_the_number_of_values():
    x = torch.zeros(2**24 + 1, dtype=torch.uint8)  # torch.quantile stops at 2**24
    x[:10] = 9
    assert Scale(quantile=0.999).fit(x).vmax == 0


@pytest.mark.parametrize(
    ("declared", "match"),
    [
        ({"quantile": 0}, r"quantile must be in \(0, 1\], got 0; 98 % is quantile=0.98"),
        ({"quantile": 98}, "got 98"),
        ({"by": "sum"}, "by must be one of 'count', 'mass', 'outliers', got 'sum'"),
        ({"per": "map"}, "per must be one of 'kernel', 'filter', 'layer', got 'map'"),
        ({"vmin": 2, "vmax": 1}, "vmin must be at most vmax, got 2 and 1"),
        ({"vmin": float("nan")}, "vmin must be finite, got nan; leave it out to fit it"),
        ({"vmax": float("inf")}, "vmax must be finite, got inf"),
        ({"symmetric": True, "vmin": -1, "vmax": 2}, "vmin == -vmax, got -1 and 2; give vmax alone"),
        ({"symmetric": True, "vmax": -2}, "vmin <= 0 <= vmax, got vmin=None, vmax=-2"),
    ],
)
def test_a_scale_that_cannot_be_says_why(declared, match):
    with pytest.raises(OptionError, match=match):
        Scale(**declared)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (
            torch.ones(2, dtype=torch.complex64),
            DtypeError,
            r"expected real values, got torch.complex64; draw x.abs\(\)",
        ),
        (torch.empty(0, 3), ShapeError, r"an empty tensor of shape \(0, 3\)"),
        (torch.ones(2, device="meta"), DeviceError, "x: expected values, got a tensor on the meta device"),
        (torch.ones(2).to_sparse(), DtypeError, "expected a dense tensor, got torch.sparse_coo"),
        ([1.0], DtypeError, "must be a tensor, got"),
    ],
)
def test_what_cannot_be_drawn_says_why(x, error, match):
    with pytest.raises(error, match=match):
        normalize(x)


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors_are_refused():
    with pytest.raises(DtypeError, match="expected plain values, got torch"):
        normalize(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8))


@pytest.mark.parametrize("look", [Scale().fit, Scale(), normalize, lambda x: overlay(x, torch.rand(1, 2, 2))])
def test_the_meta_device_is_one_error_everywhere(look):
    with pytest.raises(DeviceError, match="expected values, got a tensor on the meta device, which has none"):
        look(torch.ones(1, 3, 2, 2, device="meta"))


def test_fit_without_tensors_or_with_too_few_axes_or_unlike_shapes():
    with pytest.raises(ShapeError, match="fit needs at least one tensor, got none"):
        Scale().fit()
    with pytest.raises(ShapeError, match=r"per filter needs '... c h w', got shape \(2, 2\)"):
        Scale(per="filter").fit(torch.ones(2, 2))
    with pytest.raises(ShapeError, match="must agree before their last 2 axes"):
        Scale(per="kernel").fit(torch.ones(2, 3, 3), torch.ones(4, 3, 3))
    with pytest.raises(ShapeError, match=r"fitted per kernel on \(2, 1, 1\), got \(4, 3, 3\)"):
        Scale(per="kernel").fit(torch.ones(2, 3, 3))(torch.ones(4, 3, 3))


def test_normalize_cuts_to_the_unit_range_and_takes_a_scale_or_its_fields():
    x = torch.tensor([-1.0, 1.0, 5.0, float("inf"), float("-inf")])
    assert normalize(x, vmin=0, vmax=2).tolist() == [0, 0.5, 1, 1, 0]
    assert normalize(x, Scale(vmin=0, vmax=2)).tolist() == [0, 0.5, 1, 1, 0]
    assert normalize(torch.tensor([float("nan")])).isnan().all()
    with pytest.raises(OptionError, match="pass either scale or its fields, got scale and vmin"):
        normalize(x, Scale(), vmin=0)


def test_the_module_is_the_function():
    x = torch.randn(4, 3, 5, 5)
    module = KernelNormalizer(symmetric=True, quantile=0.9)
    assert module(x).equal(normalize(x, symmetric=True, quantile=0.9, per="kernel"))
    assert repr(module) == "KernelNormalizer(symmetric=True, quantile=0.9, by='count', per='kernel')"


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (Scale(), "one scale for all"),
        (Scale(symmetric=True, per="kernel"), "symmetric about 0, each map on its own scale"),
        (Scale(quantile=0.98, by="mass"), "one scale for all, holds 98 % of the absolute mass"),
        (Scale(quantile=0.5, per="filter"), "each filter on its own scale, holds 50 % of the values"),
    ],
)
def test_a_scale_can_say_what_it_is(scale, words):
    assert scale.describe() == words


def outliers_by_hand(values, symmetric, share=0.995):
    """The ends as the docstring has them, with sorted lists."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if symmetric:
        sizes = sorted(map(abs, values))
        inner = sizes[max(1, math.ceil(share * len(sizes) - 1e-9)) - 1]
        end = inner if 0 < inner < 0.75 * sizes[-1] else sizes[-1]
        return -end, end
    inside = max(1, math.ceil((1 + share) / 2 * len(ordered) - 1e-9))
    inner = ordered[len(ordered) - inside], ordered[inside - 1]
    if 0 < inner[1] - inner[0] < 0.75 * (high - low):
        low, high = inner
    low, high = 0.0 if 0 < low < high / 4 else low, 0.0 if low / 4 < high < 0 else high
    return low, max(high, low + max(abs(low), abs(high)) * 2.0**-17)


@given(
    hnp.arrays(np.float32, (700,), elements=st.floats(-8, 8, width=32)),
    st.lists(st.floats(-1e6, 1e6, width=32), max_size=8),
    st.booleans(),
)
def test_outliers_are_left_out_where_they_take_a_quarter_of_the_range(a, far, symmetric):
    a[: len(far)] = far
    scale = Scale(symmetric=symmetric, quantile=0.995, by="outliers").fit(torch.from_numpy(a))
    low, high = outliers_by_hand(a.tolist(), symmetric)
    assert (scale.vmin, scale.vmax) == (pytest.approx(low), pytest.approx(high))
    assert ((a < scale.vmin) | (a > scale.vmax)).sum() <= 0.005 * a.size


def test_few_values_have_no_outliers():
    values = torch.tensor([0.0, 1.0, 2.0, 1000.0])
    assert Scale(quantile=0.995, by="outliers").fit(values).vmax == 1000


def test_each_kernel_has_outliers_of_its_own():
    values = torch.rand(2, 30, 30)
    values[1, 0, 0] = 99
    scale = Scale(quantile=0.995, by="outliers", per="kernel").fit(values)
    assert scale.vmax.flatten()[0] == values[0].max()
    assert scale.vmax.flatten()[1] < 1
    assert scale.describe() == "each map on its own scale, outliers clipped, at most 0.5 % of the values"
