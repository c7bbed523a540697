import pytest
import torch
from torch import nn

from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.explain import deconvnet, project
from torch_featviz.inspect import receptive_field
from torch_featviz.picture import enlarge, rgb
from torch_featviz.views import projection
from torch_featviz.zoo import ModelCard

IMAGE = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))


def net(channels=3):
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 13)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def test_the_projection_beside_the_whole_image_where_a_unit_sees_most_of_it():
    sheet = projection(net(), IMAGE, "5", (3, 0, 0))
    seen = receptive_field(net(), "5", (40, 40)).box(0, 0)
    assert sheet.columns == ("image", "projection")
    values = deconvnet(net(), IMAGE, "5", [(3, 0, 0)])[0]
    (top, bottom), (left, right) = seen
    end = float(values[:, top:bottom, left:right].abs().flatten().quantile(0.999, interpolation="higher"))
    assert sheet.legend.scale.vmax == pytest.approx(end, rel=0.05)
    zoom = sheet.cells.shape[2] // 40
    shown = sheet.cells[1, :, ::zoom, ::zoom].double() / 255 * 2 - 1
    reach = float(sheet.legend.scale.vmax)
    assert (shown * reach - values.clamp(-reach, reach)).abs().max() < reach / 200
    assert sheet.labels[1] == f"activation {float(net()(IMAGE)[0, 3, 0, 0]):.3g}".replace("-", "−")


def test_the_box_is_what_the_unit_sees():
    cell = projection(net(), IMAGE, "5", (3, 1, 3)).cells[0]
    zoom = cell.shape[1] // 40
    (top, bottom), (left, right) = (
        (zoom * low, zoom * high) for low, high in receptive_field(net(), "5", (40, 40)).box(1, 3)
    )
    untouched = enlarge(rgb(IMAGE), zoom)[0]
    changed = (cell != untouched).any(0)
    assert not changed[top:bottom, left:right].any(), "nothing within the box is covered"
    expected = torch.zeros_like(changed)
    expected[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = True
    expected[top:bottom, left:right] = False
    assert not changed[~expected].any()
    assert cell[:, top - 1, left:right].unique().tolist() == [255]
    assert cell[:, top - 2, left:right].unique().tolist() == [0]


def test_a_small_field_is_enlarged_with_its_projection():
    maps = net()[:5](IMAGE)[0]
    place = (2, *divmod(int(maps[2, 3:15, 3:15].argmax()), 12))
    place = (2, place[1] + 3, place[2] + 3)
    sheet = projection(net(), IMAGE, "4", place)
    assert sheet.columns == ("image", "what the unit sees", "projection")
    (top, bottom), (left, right) = receptive_field(net(), "4", (40, 40)).box(*place[1:])
    values = deconvnet(net(), IMAGE, "4", [place])[0]
    outside = values.clone()
    outside[:, top:bottom, left:right] = 0
    assert (outside == 0).all(), "what is left out is 0"
    side = sheet.cells.shape[2]
    factor = side // (bottom - top)
    begin = (side - factor * (bottom - top)) // 2
    inner = slice(begin, begin + factor * (bottom - top))
    expected = enlarge(rgb(IMAGE)[0, :, top:bottom, left:right], factor)
    assert torch.equal(sheet.cells[1, :, inner, inner], expected)
    reach = float(sheet.legend.scale.vmax)
    shown = sheet.cells[2, :, inner, inner][:, ::factor, ::factor].double() / 255 * 2 - 1
    assert (shown * reach - values[:, top:bottom, left:right].clamp(-reach, reach)).abs().max() < reach / 200


def test_a_channel_is_looked_at_where_it_is_strongest():
    maps = net()[:5](IMAGE)[0]
    row, column = divmod(int(maps[2].argmax()), maps.shape[2])
    sheet = projection(net(), IMAGE[0], "4", 2)
    assert sheet.title == f"Channel 2 of 4 at row {row}, column {column}, projected back to the pixels (deconvnet)"
    assert torch.equal(sheet.cells, projection(net(), IMAGE, "4", (2, row, column)).cells)
    found = project(net(), IMAGE, "4", [2, (5, 6, 9)])
    assert found.units == ((2, row, column), (5, 6, 9))
    assert torch.allclose(found.activations, torch.stack([maps[2].max(), maps[5, 6, 9]]))


def test_several_units_each_on_its_own_scale():
    units = [0, (5, 6, 9), 7]
    sheet = projection(net(), IMAGE, "4", units)
    for i, unit in enumerate(units):
        one = projection(net(), IMAGE, "4", unit)
        zoomed = sheet.cells[3 * i + 2] if sheet.cells.shape == one.cells.shape else None
        assert zoomed is None or torch.equal(zoomed, one.cells[2])
    assert sheet.cells.shape[0] == 9
    assert sheet.legend.scale is None
    assert "each has its own scale, symmetric about 0" in sheet.legend.notes[0]
    assert sheet.labels[3] == "channel 5 at (6, 9)"
    assert sheet.title == "3 units of 4, projected back to the pixels (deconvnet)"


def test_what_is_not_active_has_no_projection_and_it_is_said():
    model = net()
    with torch.no_grad():
        model[0].bias.fill_(-100)
    sheet = projection(model, IMAGE, "0", (1, 3, 3))
    assert (sheet.cells[2][:, 100:150, 100:150] == 128).all()
    assert "not above 0 in this image, so nothing is projected: 1 of 1" in sheet.legend.notes


def test_one_channel_is_drawn_in_red_and_blue_and_the_image_by_its_card():
    card = ModelCard("any", nn.Identity, (1, 40, 40), mean=(0.5,), std=(0.2,))
    image = card.normalize(IMAGE[:, :1])
    sheet = projection(net(1), image, "4", 3, card=card)
    assert sheet.legend.cmap == "RdBu_r"
    assert sheet.legend.notes[0].startswith("projection: red is above 0, blue below")
    assert sheet.legend.marks() == []
    assert projection(net(1), image, "4", 3).legend.counts.over > 0


@pytest.mark.parametrize(("n", "side"), [(32, 230), (1, 700), (32, 40)])
def test_no_sheet_is_wider_or_higher_than_4000(n, side):
    model = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2), nn.ReLU())
    sheet = projection(model, torch.rand(3, side, side), "1", list(range(n)))
    assert max(sheet.numpy().shape[:2]) <= 4000


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"image": torch.rand(2, 3, 40, 40)}, ShapeError, "image must be one image '1 h w' or '3 h w', got"),
        ({"image": torch.rand(2, 40, 40)}, ShapeError, r"image must be one image .* got shape \(2, 40, 40\)"),
        ({"unit": []}, ShapeError, "units must be one per image"),
        ({"unit": [0] * 33}, ShapeError, "33 units are too many, a sheet shows 32"),
        ({"unit": (9, 0, 0)}, OptionError, "layer '4' has channels 0 to 7, got channel 9"),
        ({"unit": (0, 99, 0)}, OptionError, "is outside the map of layer '4'"),
        ({"layer": "9"}, LayerError, "no layer '9'"),
        ({"projection": "up"}, OptionError, "projection must be 'deconvnet' or 'guided_backprop'"),
        ({"value_range": "float"}, OptionError, "value_range must be one of"),
    ],
)
def test_bad_input_says_what_to_do(change, error, match):
    given = {"image": IMAGE, "layer": "4", "unit": 0, **change}
    with pytest.raises(error, match=match):
        projection(net(), given.pop("image"), given.pop("layer"), given.pop("unit"), **given)
