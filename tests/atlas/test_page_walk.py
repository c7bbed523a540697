"""The walk, driven by mouse and by keys; what it shows is compared with the tensors."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz.atlas import atlas
from torch_featviz.picture import reserved
from torch_featviz.picture.color import lut


def shown(page):
    return page.inner_text("#value")


def hover(page, place, row, column, size):
    """Put the pointer on the middle of a value of the map at a place."""
    canvas = page.locator(f'#maps [data-place="{place}"] canvas').first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    step = box["width"] / size[1], box["height"] / size[0]
    page.mouse.move(box["x"] + (column + 0.5) * step[0], box["y"] + (row + 0.5) * step[1])


def channels(page):
    return [int(re.match(r"channel (\d+)", text)[1]) for text in page.locator("#maps .caption").all_text_contents()]


@pytest.mark.parametrize(("layer", "channel", "row", "column"), [("0", 5, 0, 11), ("3", 11, 3, 1), ("2", 2, 5, 5)])
def test_hover_reads_the_tensor(look, made, layer, channel, row, column, close):
    page = look(f"layer={layer}&sort=channel")
    values = made.values[layer][0]
    hover(page, channel, row, column, values.shape[1:])
    assert close(shown(page), values[channel, row, column])
    assert f"channel {channel}, row {row}, column {column}" in page.inner_text("#place")


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 2)])
def test_the_box_is_what_the_unit_sees(look, made, row, column):
    page = look("layer=3&sort=channel")
    hover(page, 4, row, column, (4, 4))
    (top, bottom), (left, right) = fv.receptive_field(made.net, "3", input_size=(14, 14)).box(row, column)
    assert f"rows {top}–{bottom - 1}, columns {left}–{right - 1} of" in page.inner_text("#sees")
    image, box = page.locator("#pictures img").bounding_box(), page.locator("#pictures .box").bounding_box()
    zoom = image["width"] / 14
    assert [box["y"] - image["y"], box["x"] - image["x"]] == pytest.approx([top * zoom, left * zoom])
    assert [box["height"], box["width"]] == pytest.approx([(bottom - top) * zoom, (right - left) * zoom])
    assert page.evaluate("[document.querySelector('#patch').height, document.querySelector('#patch').width]") == [
        bottom - top,
        right - left,
    ]


def test_order_by_strength_and_by_number(look, expect, made):
    page = look("layer=3")
    highest = made.values["3"][0].flatten(1).amax(1)
    assert channels(page) == highest.argsort(descending=True, stable=True).tolist()
    page.get_by_label("Order").select_option("channel")
    expect(page.locator("#maps .caption").first).to_have_text(re.compile("^channel 0 "))
    assert channels(page) == list(range(12))


def test_dead_maps_are_marked(look, made):
    page = look("layer=4&sort=channel")
    dead = [i for i, plane in enumerate(made.values["4"][0]) if plane.max() <= 0]
    marked = [i for i, text in enumerate(page.locator("#maps .caption").all_text_contents()) if "×" in text]
    assert marked == dead


def pixel_at_peak(page, place, plane):
    at = int(plane.argmax())
    row, column = divmod(at, plane.shape[1])
    canvas = page.locator(f'#maps [data-place="{place}"] canvas')
    return canvas.evaluate("(c, [y, x]) => [...c.getContext('2d').getImageData(x, y, 1, 1).data]", [row, column])


def test_each_map_uses_all_of_the_palette_or_all_share_it(look, expect, made):
    page = look("layer=1&sort=channel")
    planes = made.values["1"][0]
    weakest = int(torch.where(planes.flatten(1).amax(1) > 0, planes.flatten(1).amax(1), torch.inf).argmin())
    end = [253, 231, 36, 255]  # of viridis
    expect(page.locator("#legend")).to_contain_text("each map on its own scale")
    expect(page.locator("#legend")).to_contain_text("clipped 0 %")
    assert pixel_at_peak(page, weakest, planes[weakest]) == end
    page.locator("[data-state=scale]").select_option("one")
    expect(page.locator("#legend")).to_contain_text("one scale for all")
    page.wait_for_timeout(100)
    assert pixel_at_peak(page, weakest, planes[weakest]) != end


class Far(nn.Module):
    """One map with an outlier, one of both signs with two, one that is faint, and one with an offset."""

    def forward(self, x):
        even = torch.linspace(0, 1, 900).reshape(30, 30)
        maps = torch.stack([even, 2 * even - 1, even * 1e-6, even + 7])
        maps[0, 0, 0], maps[1, 0, 0], maps[1, 29, 29] = 61.6, -40, 30
        return maps[None] + 0 * x[:, :1]


@pytest.mark.parametrize("scale", ["own", "one"])
def test_outliers_are_marked_counted_and_flatten_nothing(look, expect, tmp_path, scale):
    file = atlas(nn.Sequential(Far(), nn.Hardtanh(-100, 100)), torch.rand(1, 3, 30, 30)).save(tmp_path / "far.html")
    page = look(f"layer=1&sort=channel&scale={scale}", file)
    legend = page.locator("#legend")
    marked = [text for text in page.locator("#maps .caption").all_text_contents() if "≈" in text]
    assert len(marked) == 1
    assert marked[0].startswith("channel 2 ")
    counts = {"own": ("2 above its scale", "2 below its scale"), "one": ("above its scale", "clipped")}[scale]
    expect(legend).to_contain_text("clipped")
    for words in counts:
        expect(legend).to_contain_text(words)
    read = "c => [...c.getContext('2d').getImageData(0, 0, 30, 30).data]"
    cells = [
        np.array(page.locator(f'#maps [data-place="{i}"] canvas').evaluate(read)).reshape(900, 4) for i in range(4)
    ]
    assert tuple(cells[0][0, :3]) == reserved("viridis" if scale == "own" else "RdBu_r")["over"]
    assert tuple(cells[1][0, :3]) == reserved("RdBu_r")["under"]
    if scale == "one":
        return
    first, last = lut("viridis")[[1, -2]].tolist()
    near = lambda cell, place, color: np.abs(cell[place, :3].astype(int) - color).max() < 12
    assert near(cells[0], 2, first)
    assert near(cells[0], 897, last)
    assert near(cells[3], 2, first)
    assert near(cells[3], 897, last)
    assert len(np.unique(cells[2], axis=0)) < 5, "faint beside the others"


def test_compare_draws_both_on_one_scale(look, expect, made, close):
    page = look("layer=0&sort=channel")
    page.get_by_label("Compare with").select_option("1")
    expect(page.locator('#maps [data-place="3"] canvas')).to_have_count(2)
    canvas = page.locator('#maps [data-place="3"] canvas').nth(1)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"] / 12, box["y"] + 0.5 * box["height"] / 12)
    assert close(shown(page), made.values["0"][1, 3, 0, 0])
    assert "second.png" in page.inner_text("#place")
    assert page.locator("#pictures img").count() == 2


def test_units_are_listed_with_values_and_class_names(look, made, close):
    page = look("layer=6")
    rows = [row.split("\n") for row in page.locator("#maps .unit").all_inner_texts()]
    order = made.values["6"][0].argsort(descending=True).tolist()
    assert [row[0] for row in rows] == [f"unit {i}" for i in order]
    assert [row[1] for row in rows] == [("circle", "cross", "square", "star")[i] for i in order]
    assert all(close(row[-1], made.values["6"][0, i]) for row, i in zip(rows, order, strict=True))


def test_kernels_read_the_weights(look, made, close):
    page = look("layer=3&map=7")
    canvas = page.locator("#filter-of .scroll canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.wait_for_timeout(150)
    page.mouse.move(box["x"] + 3, box["y"] + 3)
    assert close(shown(page), made.net[3].weight[7, 0, 0, 0].detach())
    assert "filter 7, channel 0, row 0, column 0" in page.inner_text("#place")


@pytest.mark.parametrize(("state", "filters"), [("layer=3", range(12)), ("layer=3&map=7", [7]), ("layer=0", range(8))])
def test_kernels_are_read_by_keys(look, expect, made, state, filters, close):
    page = look(state)
    weight = made.net[int(state[6])].weight.detach()
    pane = page.locator("#filter-of .scroll" if "map" in state else "#kernels .scroll")
    pane.scroll_into_view_if_needed()
    page.wait_for_timeout(150)
    pane.focus()
    page.keyboard.press("ArrowRight")
    assert close(shown(page), weight[filters[0], 0, 0, 0])
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight"):  # into the next cell
        page.keyboard.press(key)
    found = [int(each) for each in re.findall(r"(?:filter|row|column) (\d+)", page.inner_text("#place"))]
    channel = re.search(r"channel (\d+)", page.inner_text("#place"))
    assert found[1:] == [1, 0]
    assert close(shown(page), weight[found[0], int(channel[1]) if channel else 0, 1, 0])
    assert shown(page) in page.inner_text("#say")
    mark, canvas = pane.locator(".box").bounding_box(), pane.locator("canvas").bounding_box()
    page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    expect(page.locator("#say")).to_have_text(f"{shown(page)}, {page.inner_text('#place').partition(': ')[2]}")
    assert canvas["x"] <= mark["x"] < canvas["x"] + canvas["width"]


def test_images_are_chosen_by_mouse_and_keys(look, expect, made, close):
    page = look("layer=0&sort=channel")
    page.get_by_role("radio", name="second.png").click()
    expect(page.locator("#pictures img")).to_have_attribute("alt", re.compile("second"))
    assert page.evaluate("location.hash") == "#image=1&sort=channel"
    page.wait_for_timeout(150)
    hover(page, 3, 2, 6, (12, 12))
    assert close(shown(page), made.values["0"][1, 3, 2, 6])
    page.get_by_role("radio", name="second.png").focus()
    page.keyboard.press("ArrowUp")
    expect(page.locator("#pictures img")).to_have_attribute("alt", re.compile("first"))
    page.wait_for_timeout(150)
    hover(page, 3, 2, 6, (12, 12))
    assert close(shown(page), made.values["0"][0, 3, 2, 6])


def test_views_are_changed_by_tabs_and_by_digits(look, expect):
    page = look()
    for n, name in ((1, "why"), (2, "learning"), (0, "walk")):
        page.locator("#views a").nth(n).click()
        expect(page.locator(f"#{name}")).to_be_visible()
    for key, name in (("2", "why"), ("3", "learning"), ("1", "walk")):
        page.keyboard.press(key)
        expect(page.locator(f"#{name}")).to_be_visible()
        assert page.locator("#views [aria-current]").get_attribute("data-view") == name


def test_a_map_is_opened_closed_and_walked_by_keys(look, made, close):
    page = look("layer=0&sort=channel")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash").endswith("map=1&sort=channel")
    assert page.inner_text("#large-title") == "Channel 1 of layer 0"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#large-title") == "Channel 2 of layer 0"
    page.locator("#stages .frame").focus()
    peak = made.values["0"][0, 2].max()
    assert close(shown(page), peak)
    for _ in range(12):
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    assert close(shown(page), made.values["0"][0, 2, 1, 0])
    assert shown(page) in page.inner_text("#say")
    page.keyboard.press("Escape")
    assert page.locator("#large").is_hidden()
    assert page.evaluate("document.activeElement.dataset.place") == "2"


def test_a_map_is_opened_by_mouse_with_histogram_filter_and_patches(look, made, close):
    page = look("layer=0&sort=channel")
    page.locator('#maps [data-place="6"]').click()
    low, high = made.values["0"][0, 6].aminmax()
    label = page.locator("#histograms svg").get_attribute("aria-label")
    assert [close(text, value) for text, value in zip(label.split()[-3::2], (low, high), strict=True)] == [True, True]
    assert page.locator("#filter-of .scroll canvas").count() == 1
    units = made.data["layers"][1]["units"]["channels"]
    assert ("6" in units) == (page.locator("#exemplars .values li").count() > 0)
    slider = page.locator("#large-alpha input")
    slider.fill("0.25")
    assert page.locator("#stages canvas").evaluate("each => each.style.opacity") == "0.25"
    page.locator("#next").click()
    assert page.inner_text("#large-title") == "Channel 7 of layer 0"
    page.locator("#back").click()
    assert page.locator("#large").is_hidden()


def test_patches_stand_with_their_values(look, made, close):
    channel, found = next(iter(made.data["layers"][1]["units"]["channels"].items()))
    page = look(f"layer=0&map={channel}")
    texts = page.locator("#exemplars .values li").all_inner_texts()
    assert all(close(text, value) for text, value in zip(texts, found["values"], strict=True))
    assert page.locator("#exemplars img").count() == 2


def test_patches_say_by_what_method_they_are_projected_and_how_alike_that_is(look, made):
    for name in ("0", "3"):
        units = next(layer["units"] for layer in made.data["layers"] if layer["name"] == name)
        channel, found = next((c, f) for c, f in units["channels"].items() if f["cosine"] is not None)
        said = look(f"layer={name}&map={channel}").inner_text("#exemplars p")
        assert f"its projection by {units['projected_by']}" in said
        assert f"Cosine between these projections: {found['cosine']:.2f}; 1: the patch does not matter." in said
        assert "a deconvnet then shows" not in said


def test_layers_by_keys_by_mouse_and_back(look, until):
    page = look()
    ways = (
        lambda: page.keyboard.press("ArrowDown"),
        lambda: page.keyboard.press("j"),
        lambda: page.keyboard.press("k"),
        lambda: page.locator('#list a[data-layer="6"]').click(),
        page.go_back,
    )
    for n, (go, name) in enumerate(zip(ways, "12161", strict=True), 1):
        go()
        until(page, f"performance.getEntriesByName('atlas-layer').length === {n}")
        assert page.inner_text("#layer-name") == name
        assert page.locator('#list a[aria-current="true"]').get_attribute("data-layer") == name


def test_the_filter_keeps_its_keys(look):
    page = look()
    page.keyboard.press("/")
    page.keyboard.type("conv?/j")
    assert page.input_value("#filter") == "conv?/j"
    page.locator("#filter").fill("conv")
    assert page.locator("#list li:visible").count() == 2
    page.keyboard.press("Escape")
    assert page.locator("#list li:visible").count() == 7
    assert page.inner_text("#layer-name") == "0"


def test_answers_and_facts(look, made, close):
    page = look("image=1")
    best = made.chances[1].argsort(descending=True)[0]
    first = page.locator("#top li").first.inner_text().split("\n")
    assert first[0] == ("circle", "cross", "square", "star")[best]
    assert float(first[1].removesuffix(" %")) == pytest.approx(100 * float(made.chances[1, best]), abs=0.06)
    facts = page.inner_text("#facts")
    assert "8×12×12" in facts
    assert "224" in facts
    row = page.locator("#stats tbody tr").nth(1).locator("td").all_inner_texts()
    values = made.values["0"][1]
    wanted = (values.mean(), values.std(unbiased=False), values.min(), values.max())
    assert all(close(text, value) for text, value in zip(row[:4], wanted, strict=True))


class Turned(nn.Module):
    """Its map has the image's columns for rows, from the last to the first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(3, 2, (3, 2), stride=2)

    def forward(self, x):
        return self.conv(x.transpose(2, 3).flip(2))


def test_a_map_with_axes_swapped_and_flipped_lies_over_the_image_as_it_sees_it(look, tmp_path, close):
    net, images = Turned(), torch.rand(1, 3, 12, 21)
    values, seen = net(images)[0].detach(), fv.receptive_field(net, "conv", (12, 21))
    assert seen.map_size == tuple(values.shape[1:]) == (10, 6)
    file = fv.atlas(net, images).save(tmp_path / "turned.html")
    page = look("layer=conv&sort=channel", file)
    for row, column in ((0, 0), (7, 2)):
        hover(page, 1, row, column, (10, 6))
        assert close(shown(page), values[1, row, column])
        (top, bottom), (left, right) = seen.box(row, column)
        assert f"rows {top}–{bottom - 1}, columns {left}–{right - 1} of" in page.inner_text("#sees")
    pixels = "c => [...new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)]"
    upright = torch.tensor(page.locator('#maps [data-place="1"] canvas').evaluate(pixels)).view(10, 6)
    large = look("layer=conv&sort=channel&map=1", file)
    over = large.locator("#stages canvas")
    assert torch.tensor(over.evaluate(pixels)).view(6, 10).equal(upright.flip(0).T)
    image = large.locator("#stages img").bounding_box()
    zoom = image["width"] / 21
    for place in ((0, 0), (9, 5), (3, 1)):
        (top, bottom), (left, right) = seen.box(*place)
        large.mouse.move(image["x"] + (left + right) / 2 * zoom, image["y"] + (top + bottom) / 2 * zoom)
        assert f"row {place[0]}, column {place[1]} of layer" in large.inner_text("#place")
        assert close(shown(large), values[(1, *place)])
    large.locator("#stages .frame").focus()
    row, column = divmod(int(values[1].argmax()), 6)
    for key, step in (("ArrowRight", (-1, 0)), ("ArrowDown", (0, 1)), ("ArrowLeft", (1, 0)), ("ArrowUp", (0, -1))):
        large.keyboard.press(key)  # to the right in the image is up in the map
        row, column = min(9, max(0, row + step[0])), min(5, max(0, column + step[1]))
        assert f"row {row}, column {column} of layer" in large.inner_text("#place")


def test_only_maps_have_a_choice_of_scale(look, expect):
    page = look("layer=1")
    expect(page.locator("#scale-choice")).to_be_visible()
    page = look("layer=6")
    expect(page.locator("#scale-choice")).to_be_hidden()
    expect(page.locator("#legend")).to_contain_text("one scale for all units and images of this layer")
