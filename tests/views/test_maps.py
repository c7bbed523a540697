import pytest
import torch

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.picture import Scale, colorize
from torch_featviz.views import feature_maps


def test_all_maps_in_order_on_one_declared_symmetric_scale():
    maps = torch.randn(6, 5, 4)
    maps[:, 0, 0] = 1
    sheet = feature_maps(maps)
    assert sheet.labels == tuple("012345")
    scale = sheet.legend.scale
    assert scale.symmetric
    assert scale.vmax == maps.abs().max().item()
    assert sheet.cells.equal(colorize(scale(maps)[:, None], "RdBu_r"))
    assert sheet.title == "6 feature maps of 5 × 4"


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


def test_many_ties_stay_in_order():
    maps = torch.arange(300)[:, None, None] % 2 + torch.zeros(300, 2, 2)
    assert feature_maps(maps, top=200).labels[:150] == tuple(str(i) for i in range(1, 300, 2))
    assert feature_maps(maps, top=200).labels[150:] == tuple(f"{i} ×" for i in range(0, 100, 2))


def test_the_scale_is_the_layers_also_where_only_the_top_is_shown():
    maps = torch.tensor([-9.0, 1.0]).reshape(2, 1, 1)
    assert feature_maps(maps, top=1).legend.scale.vmax == 9


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
    sheet = feature_maps({"circle": circle, "cross": cross}, ncols=2)
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
            lambda: feature_maps(torch.ones(1, 2, 3, 3)),
            ShapeError,
            r"maps must be 'c h w' and not empty, got shape \(1, 2, 3, 3\); take one image with maps\[0\]",
        ),
        (lambda: feature_maps(torch.ones(3, 3)), ShapeError, r"got shape \(3, 3\)\.$"),
        (lambda: feature_maps(torch.ones(0, 3, 3)), ShapeError, "not empty"),
        (lambda: feature_maps({}), ShapeError, "at least one tensor, got an empty mapping"),
        (lambda: feature_maps({"a": torch.ones(1, 1, 2, 2)}), ShapeError, r"maps\['a'\]\[0\]"),
        (
            lambda: feature_maps({"a": torch.ones(1, 2, 2), "b": torch.ones(2, 2, 2)}),
            ShapeError,
            "of one shape, got",
        ),
        (lambda: feature_maps([1]), DtypeError, "must be a tensor 'c h w', got list"),
        (lambda: feature_maps(torch.ones(1, 2, 2, dtype=torch.cfloat)), DtypeError, "expected real values"),
        (lambda: feature_maps(torch.ones(1, 2, 2), top=0), OptionError, "top must be at least 1, got 0"),
        (lambda: feature_maps(torch.ones(1, 2, 2), ncols=0), OptionError, "ncols must be at least 1, got 0"),
    ],
)
def test_bad_input_says_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_lone_channel_needs_no_number():
    assert feature_maps({"x": torch.ones(1, 4, 4), "y": torch.zeros(1, 4, 4)}).labels == ("", "")
    assert feature_maps(torch.zeros(1, 4, 4)).labels == ("×",)
