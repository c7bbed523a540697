import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.model.layout import Layout
from torch_featviz.picture import Scale, colorize, reserved
from torch_featviz.views import feature_maps


def drawn(cell, cmap):
    """The places of a cell's colours in matplotlib's table, 0 to 1; NaN for others."""
    n = 255 if "RdBu" in cmap else 256
    colors = matplotlib.colormaps[cmap].resampled(n)(np.arange(n), bytes=True)[:, :3].tolist()
    places = {tuple(color): i / (n - 1) for i, color in reversed(list(enumerate(colors)))}
    return np.array([places.get(tuple(p), np.nan) for p in cell.permute(1, 2, 0).reshape(-1, 3).tolist()])


def test_each_map_has_its_own_scale_by_its_signs_whose_ends_stand_below_it():
    maps = torch.stack([torch.linspace(0, 2, 20), torch.linspace(-3, 1, 20), torch.linspace(4, 5, 20)])[:, None]
    sheet = feature_maps(maps)
    assert sheet.labels == tuple("012")
    assert sheet.captions == ("0…2", "±3", "4…5")
    even = np.arange(20) / 19
    np.testing.assert_allclose(drawn(sheet.cells[0], "viridis"), even, atol=0.003)
    np.testing.assert_allclose(drawn(sheet.cells[1], "RdBu_r"), (maps[1, 0].numpy() + 3) / 6, atol=0.003)
    np.testing.assert_allclose(drawn(sheet.cells[2], "viridis"), even, atol=0.003)
    assert (sheet.legend.cmap, sheet.legend.also.cmap) == ("RdBu_r", "viridis")
    assert "values of one sign: sequential colours" in sheet.legend.also.lines()
    assert "values of both signs: diverging colours" in sheet.legend.lines()
    assert sheet.title == "3 feature maps of 1 × 20"


def test_one_scale_for_all_on_request():
    maps = torch.randn(6, 5, 4)
    sheet = feature_maps(maps, per="layer")
    scale = sheet.legend.scale
    assert scale.symmetric
    assert scale.vmax == maps.abs().max().item()
    assert sheet.cells.equal(colorize(scale(maps)[:, None], "RdBu_r"))
    assert sheet.captions == ()


@pytest.mark.parametrize("per", ["kernel", "layer"])
def test_one_outlier_flattens_nothing_and_is_marked_and_counted(per):
    maps = torch.rand(4, 30, 30, generator=torch.Generator().manual_seed(0))
    maps[2, 3, 4] = 61.6
    sheet = feature_maps(maps, per=per)
    for cell in sheet.cells:
        assert np.nanmax(drawn(cell, "viridis")) - np.nanmin(drawn(cell, "viridis")) > 0.95
    assert tuple(sheet.cells[2, :, 3, 4].tolist()) == reserved("viridis")["over"]
    beyond = sum(int(np.isnan(drawn(cell, "viridis")).sum()) for cell in sheet.cells)
    assert sheet.legend.counts.over + sheet.legend.counts.under == beyond <= 0.005 * maps.numel()
    assert f"clipped {100 * beyond / maps.numel():.2g} %" in sheet.legend.lines()


@given(
    hnp.arrays(np.float32, (3, 6, 7), elements=st.floats(-100, 100, width=32)),
    st.sampled_from(["kernel", "layer"]),
    st.sampled_from([None, 1, 2]),
)
def test_of_few_values_none_is_clipped(a, per, top):
    counts = feature_maps(torch.from_numpy(a), per=per, top=top).legend.counts
    assert (counts.over, counts.under) == (0, 0), "0.5 % of 126 values is less than one"


@given(hnp.arrays(np.float32, (2, 20, 25), elements=st.floats(-1e4, 1e4, width=32) | st.floats(-1, 1, width=32)))
def test_at_most_half_a_per_cent_is_clipped_and_never_more_colours_than_there_are(a):
    sheet = feature_maps(torch.from_numpy(a))
    legends = [legend for legend in (sheet.legend, sheet.legend.also) if legend]
    assert sum(legend.counts.over + legend.counts.under for legend in legends) <= 0.005 * a.size
    assert sum(legend.total for legend in legends) == a.size


def test_an_offset_flattens_nothing_and_rounding_is_no_pattern():
    noise = torch.rand(1, 12, 12)
    assert np.ptp(drawn(feature_maps(50 + noise).cells[0], "viridis")) > 0.99
    assert np.ptp(drawn(feature_maps(50 + 1e-6 * noise).cells[0], "viridis")) < 0.02


def test_faint_maps_are_flat_and_marked():
    maps = torch.rand(5, 8, 8)
    maps[1] *= 1e-6
    maps[2] = (maps[2] - 0.5) * 1e-6
    sheet = feature_maps(maps)
    assert sheet.labels == ("0", "1 ≈", "2 ≈", "3", "4")
    assert np.ptp(drawn(sheet.cells[1], "viridis")) < 0.02
    assert np.ptp(drawn(sheet.cells[2], "RdBu_r")) < 0.02
    assert "≈ below 0.1 % of the median map: 2 of 5" in sheet.legend.lines()


@pytest.mark.parametrize(("cmap", "symmetric"), [("gray", False), ("Blues", False), ("RdBu", True), ("PuOr_r", True)])
def test_a_colour_map_of_ones_choice_decides_by_its_kind(cmap, symmetric):
    maps = torch.randn(3, 8, 8)
    legend = feature_maps(maps, cmap=cmap).legend
    assert (legend.cmap, legend.scale.symmetric) == (cmap, symmetric)
    assert legend.also is None
    low, high = maps.amin((1, 2)), maps.amax((1, 2))
    reach = torch.maximum(-low, high)
    assert legend.scale.vmax.flatten().tolist() == (reach if symmetric else high).tolist()
    assert legend.scale.vmin.flatten().tolist() == (-reach if symmetric else low).tolist()


@pytest.mark.parametrize(
    ("shape", "shown"), [((2048, 7, 7), 2048), ((2048, 56, 56), 2048), ((1000, 112, 112), None), ((60, 500, 500), None)]
)
def test_a_sheet_is_never_larger_than_4000_pixels_and_says_what_it_left_out(shape, shown):
    maps = torch.rand(shape)
    sheet = feature_maps(maps)
    assert max(sheet.numpy().shape) <= 4000
    if shown:
        assert len(sheet.labels) == shown
    else:
        count = len(sheet.labels)
        assert 20 < count < shape[0]
        assert f"{count} of {shape[0]} maps, highest first" in sheet.legend.lines()
        assert sheet.labels[0] == str(int(maps.flatten(1).amax(1).argmax()))


def test_more_images_than_fit_side_by_side_are_said():
    sheet = feature_maps({f"image {i}": torch.rand(3, 112, 112) for i in range(64)})
    assert max(sheet.numpy().shape) <= 4000
    assert any(line.endswith("of 64 images") for line in sheet.legend.lines())


def test_maps_after_a_relu_are_declared_and_sequential():
    legend = feature_maps(torch.rand(3, 2, 2), scale=Scale(vmin=0)).legend
    assert (legend.cmap, legend.scale.vmin) == ("viridis", 0)


def test_top_is_by_highest_value_ties_to_the_lowest_channel():
    maps = torch.zeros(5, 2, 2)
    maps[:, 0, 0] = torch.tensor([1.0, 3.0, float("nan"), 3.0, 2.0])
    sheet = feature_maps(maps, top=3)
    assert sheet.labels == ("1", "3", "4")
    assert "3 of 5 maps, highest first" in sheet.legend.notes
    assert feature_maps(maps, top=99).labels == ("1", "3", "4", "0", "2")


def test_channels_of_one_highest_value_stand_by_their_mean():
    maps = torch.tensor([[6.0, 0, 0], [6, 5, 4], [7, 0, 0], [6, 1, 0]])[:, None]
    assert feature_maps(maps, top=4).labels == ("2", "1", "3", "0")


def test_many_ties_stay_in_order():
    maps = torch.arange(300)[:, None, None] % 2 + torch.zeros(300, 2, 2)
    assert feature_maps(maps, top=200).labels[:150] == tuple(str(i) for i in range(1, 300, 2))
    assert feature_maps(maps, top=200).labels[150:] == tuple(f"{i} ×" for i in range(0, 100, 2))


def test_the_scale_is_the_layers_also_where_only_the_top_is_shown():
    maps = torch.tensor([-9.0, 1.0]).reshape(2, 1, 1)
    assert feature_maps(maps, top=1, scale=Scale(symmetric=True)).legend.scale.vmax == 9


def test_dead_maps_are_marked_and_counted():
    maps = torch.ones(5, 2, 2)
    maps[1], maps[3] = 0, -1
    maps[4, 0] = -1
    sheet = feature_maps(maps)
    assert sheet.labels == ("0", "1 ×", "2", "3 ×", "4")
    assert "× nothing above 0: 2 of 5" in sheet.legend.notes
    maps[1, 0, 0] = float("nan")
    assert feature_maps(maps).labels[1] == "1", "nothing is known of it"


def test_a_few_images_side_by_side_on_one_scale():
    circle, cross = torch.randn(5, 3, 3), torch.randn(5, 3, 3) * 3
    sheet = feature_maps({"circle": circle, "cross": cross}, per="layer", ncols=2)
    assert sheet.columns == ("circle", "cross")
    assert (sheet.group, sheet._ncols) == (2, 4)
    assert [label.rstrip(" ×") for label in sheet.labels] == ["0", "", "1", "", "2", "", "3", "", "4", ""]
    scale = sheet.legend.scale
    assert scale.vmax == max(circle.abs().max(), cross.abs().max()).item()
    assert sheet.cells[1::2].equal(colorize(scale(cross)[:, None], "RdBu_r"))


def test_a_scale_per_kernel_is_shared_side_by_side():
    a, b = torch.tensor([1.0, 10.0]).reshape(2, 1, 1), torch.tensor([2.0, 5.0]).reshape(2, 1, 1)
    scale = feature_maps({"a": a, "b": b}, scale=Scale(symmetric=True, per="kernel")).legend.scale
    assert scale.vmax.flatten().tolist() == [2, 2, 10, 10]


def test_a_batch_is_drawn_side_by_side():
    maps = torch.randn(3, 5, 4, 4)
    sheet, by_name = feature_maps(maps), feature_maps({f"image {i}": x for i, x in enumerate(maps)})
    assert sheet.png() == by_name.png()
    assert sheet.columns == ("image 0", "image 1", "image 2")
    assert feature_maps(maps[:1]).png() == feature_maps(maps[0]).png()


LAYOUT = Layout((2, 3), prefix=1, suffix=1)


def test_tokens_with_a_layout_and_what_has_no_place():
    acts = torch.randn(2, 8, 5)
    folded = acts[:, 1:7].transpose(1, 2).reshape(2, 5, 2, 3)
    sheet = feature_maps(acts, layout=LAYOUT)
    assert sheet.cells.equal(feature_maps(folded).cells)
    assert "2 tokens without a place: not drawn" in sheet.legend.lines()
    for one in (feature_maps(acts[:1], layout=LAYOUT), feature_maps(acts[0], layout=LAYOUT)):
        assert one.cells.equal(feature_maps(folded[0]).cells)
    named = feature_maps({"a": acts[:1], "b": acts[1]}, layout=LAYOUT)
    assert named.cells.equal(sheet.cells)
    maps = feature_maps(folded.permute(0, 2, 3, 1), layout=Layout((2, 3), tokens=None, places=(1, 2)))
    assert maps.cells.equal(sheet.cells)
    assert not any("without a place" in line for line in maps.legend.lines())
    reduced = feature_maps(acts, layout=LAYOUT, reduce="max")
    assert "2 tokens without a place: not drawn" in reduced.legend.lines()


MAPS = torch.randn(3, 6, 5, 7, generator=torch.Generator().manual_seed(3)) + 0.5


def by_numpy(maps, how):
    maps = maps.double().numpy()
    if how == "pc1":
        rows = maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])
        _, _, directions = np.linalg.svd(rows - rows.mean(0))
        direction = directions[0] * np.sign(directions[0][np.abs(directions[0]).argmax()])
        return ((rows - rows.mean(0)) @ direction).reshape(len(maps), *maps.shape[2:])
    return {"mean": maps.mean(1), "max": maps.max(1), "rms": np.sqrt((maps**2).mean(1))}[how]


def lost(maps, one):
    """What lines through each channel leave of the variance."""
    rows = maps.double().numpy().transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])
    design = np.stack([one.reshape(-1), np.ones(one.size)], 1)
    residuals = rows - design @ np.linalg.lstsq(design, rows, rcond=None)[0]
    return residuals.var(0).sum() / rows.var(0).sum()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("mean", "mean of 6 channels: {} of their variance is lost"),
        ("max", "maximum of 6 channels: {} of their variance is lost"),
        ("rms", "root mean square of 6 channels: {} of their variance is lost"),
        ("pc1", "first principal component of 6 channels: {} of their variance is lost"),
    ],
)
@pytest.mark.parametrize("given", ["c h w", "b c h w", "by name"])
def test_one_map_of_all_channels_and_what_it_loses(how, words, given):
    maps = MAPS[:1] if given == "c h w" else MAPS
    names = ("one", "two", "three")
    named = {"c h w": MAPS[0], "b c h w": MAPS, "by name": dict(zip(names, MAPS, strict=True))}[given]
    sheet = feature_maps(named, reduce=how)
    one = by_numpy(maps, how)
    assert words.format(f"{100 * lost(maps, one):.0f} %") in sheet.legend.lines()
    scale = sheet.legend.scale
    reach = np.abs(one).max()
    assert scale.vmax == pytest.approx(reach if scale.symmetric else one.max(), rel=1e-5)
    assert scale.symmetric == bool((one < 0).any() and (one > 0).any())
    if how == "rms":
        assert (scale.vmin, scale.symmetric) == (0, False)
    cells = colorize(scale(torch.from_numpy(one).float())[:, None], sheet.legend.cmap)
    assert (sheet.cells.int() - cells.int()).abs().max() <= 2
    assert sheet.labels == {"c h w": (), "b c h w": ("image 0", "image 1", "image 2"), "by name": names}[given]
    assert ("0 is the mean; the largest loading is positive" in sheet.legend.lines()) == (how == "pc1")


def test_a_reduced_map_takes_scale_colours_and_columns():
    assert feature_maps(MAPS, reduce="mean", scale=Scale(symmetric=True, vmax=9)).legend.scale.vmax == 9
    gray = feature_maps(MAPS.abs(), reduce="rms", cmap="gray")
    assert (gray.legend.cmap, gray.legend.scale.vmin, gray._ncols) == ("gray", 0, 2)
    assert feature_maps(MAPS, reduce="rms", cmap="PuOr").legend.scale.symmetric
    assert feature_maps(MAPS, reduce="max", ncols=3)._ncols == 3
    assert feature_maps(MAPS, reduce="max", title="mine").title == "mine"
    assert feature_maps(MAPS[0], reduce="max").title == "Maximum of 6 feature maps of 5 × 7"


def test_reduced_maps_that_are_not_finite_or_do_not_vary():
    maps = MAPS.clone()
    maps[0, 2, 1, 3] = torch.nan
    for how in ("mean", "max", "rms", "pc1"):
        assert feature_maps(maps, reduce=how).legend.counts.nan == 1
        flat = feature_maps(torch.full((4, 3, 3), 2.0), reduce=how).legend
        assert any(": 0 % of their variance is lost" in line for line in flat.lines())
    assert feature_maps(torch.full((4, 3, 3), 1e30), reduce="rms").legend.scale.vmax == pytest.approx(1e30, rel=1e-4)


def test_a_given_scale_serves_many_pictures():
    scale = Scale(symmetric=True, vmax=5)
    one, two = (feature_maps(m, scale=scale) for m in (torch.full((1, 1, 1), 2.0), torch.tensor([[[2.0, 5.0]]])))
    assert one.cells[0, :, 0, 0].equal(two.cells[0, :, 0, 0])


@pytest.mark.parametrize("channels", [1, 5, 512])
@pytest.mark.parametrize("side", [1, 13])
def test_any_number_of_channels(channels, side):
    assert feature_maps(torch.randn(channels, side, side)).numpy().ndim == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.bool])
def test_other_dtypes(dtype):
    assert feature_maps(torch.ones(2, 3, 3).to(dtype)).png()


def test_inputs_are_not_changed():
    maps = torch.randn(4, 3, 3)
    before = maps.clone()
    feature_maps(maps, top=2).png()
    assert maps.equal(before)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: feature_maps(torch.ones(1, 1, 2, 3, 3)),
            ShapeError,
            r"maps must be 'c h w' and not empty, got shape \(1, 1, 2, 3, 3\); take one image with maps\[0\]",
        ),
        (lambda: feature_maps(torch.ones(3, 3)), ShapeError, r"got shape \(3, 3\)\.$"),
        (lambda: feature_maps(torch.ones(0, 3, 3)), ShapeError, "not empty"),
        (lambda: feature_maps({}), ShapeError, "at least one tensor, got an empty mapping"),
        (lambda: feature_maps({"a": torch.ones(1, 1, 2, 2)}), ShapeError, r"maps\['a'\]\[0\]"),
        (
            lambda: feature_maps({"a": torch.ones(1, 2, 2), "b": torch.ones(2, 2, 2)}),
            ShapeError,
            "have one shape, got",
        ),
        (lambda: feature_maps([1]), DtypeError, r"maps must be a tensor, got \[1\]"),
        (lambda: feature_maps(torch.ones(1, 2, 2, dtype=torch.cfloat)), DtypeError, "expected real values"),
        (lambda: feature_maps(torch.ones(1, 2, 2), top=0), OptionError, "top must be at least 1, got 0"),
        (
            lambda: feature_maps(torch.ones(1, 2, 2), per="filter"),
            OptionError,
            "per must be one of 'kernel', 'layer'",
        ),
        (lambda: feature_maps(torch.ones(1, 2, 2), per="layer", scale=Scale()), OptionError, "either per or scale"),
        (lambda: feature_maps(torch.ones(1, 2, 2), cmap="jet"), OptionError, "not ordered by lightness"),
        (
            lambda: feature_maps(torch.ones(1, 2, 2), cmap="RdBu", scale=Scale(vmin=0)),
            OptionError,
            "needs a sequential map, got 'RdBu'",
        ),
        (lambda: feature_maps(torch.ones(0, 1, 2, 2)), ShapeError, r"not empty, got shape \(0, 1, 2, 2\)"),
        (
            lambda: feature_maps(torch.ones(1, 2, 2), reduce="min"),
            OptionError,
            "reduce must be one of 'mean', 'max', 'rms",
        ),
        (
            lambda: feature_maps(torch.ones(1, 2, 2), reduce="max", top=3),
            OptionError,
            "either top or reduce, got top=3 and reduce='max'",
        ),
        (lambda: feature_maps(torch.ones(1, 2, 2), ncols=0), OptionError, "ncols must be at least 1, got 0"),
    ],
)
def test_bad_input_says_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_lone_channel_needs_no_number():
    assert feature_maps({"x": torch.ones(1, 4, 4), "y": torch.zeros(1, 4, 4)}).labels == ("", "")
    assert feature_maps(torch.zeros(1, 4, 4)).labels == ("×",)


def test_a_map_without_a_finite_value_says_so():
    maps = torch.stack(
        [torch.full((4, 4), torch.nan), torch.full((4, 4), torch.inf), torch.zeros(4, 4), torch.rand(4, 4)]
    )
    captions = feature_maps(maps).captions
    assert captions[:3] == ("not finite", "not finite", "0")
    assert captions[3] not in captions[:3]


@pytest.mark.parametrize("given", [{"top": 2.0}, {"ncols": "3"}])
def test_what_is_no_whole_number_is_refused(given):
    with pytest.raises(OptionError, match="must be a whole number, got"):
        feature_maps(torch.rand(4, 3, 3), **given)
