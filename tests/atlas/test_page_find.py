"""Finding a layer by keys, choosing one of many images, and how bars and numbers are written."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from torch_featviz.atlas import atlas
from torch_featviz.picture import number

SCRIPTS = Path(__file__).parents[2] / "torch_featviz/atlas/page"
RED, BLUE, GREEN = "rgb(178, 24, 43)", "rgb(33, 102, 172)", "rgb(33, 145, 140)"


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """The page of 40 images."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6), nn.ReLU()).eval()
    return atlas(net, torch.rand(40, 3, 8, 8), methods=["gradcam"]).save(tmp_path_factory.mktemp("many") / "a.html")


def focused(page):
    return page.evaluate("document.activeElement.dataset.layer ?? document.activeElement.id")


def test_enter_opens_the_first_match(look):
    page = look("layer=6")
    page.keyboard.press("/")
    page.keyboard.type("conv")
    assert page.inner_text("#found") == "2 of 7 layers; Enter opens the first"
    assert page.inner_text("#layer-name") == "6"
    page.keyboard.press("Enter")
    assert page.inner_text("#layer-name") == "0"
    assert focused(page) == "layer-name"
    assert page.input_value("#filter") == "conv"


def test_the_arrows_go_through_the_matches(look):
    page = look("layer=6")
    page.keyboard.press("/")
    page.keyboard.type("conv")
    for key, layer, at in (
        ("ArrowDown", "0", "0"),
        ("ArrowDown", "3", "3"),
        ("ArrowDown", "3", "3"),
        ("ArrowUp", "0", "0"),
        ("ArrowUp", "0", "filter"),
    ):
        page.keyboard.press(key)
        assert (page.inner_text("#layer-name"), focused(page)) == (layer, at), key
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    assert page.input_value("#filter") == ""
    assert page.locator("#list li:visible").count() == 7
    assert focused(page) == "0"


def test_enter_without_a_match_does_nothing(look):
    page = look("layer=3")
    page.keyboard.press("/")
    page.keyboard.type("nothing")
    for key in ("Enter", "ArrowDown"):
        page.keyboard.press(key)
    assert (page.inner_text("#layer-name"), focused(page)) == ("3", "filter")
    assert page.inner_text("#found") == "0 of 7 layers"


@pytest.mark.parametrize("width", [1400, 900, 380])
def test_many_images_leave_room_for_the_answer(look, many, width):
    page = look("", many, width=width)
    box = page.locator("#answer").bounding_box()
    assert box["y"] + box["height"] < 900
    assert page.locator("#images img").count() == 40
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_many_images_are_radio_buttons(look, expect, many):
    page = look("", many)
    assert page.get_by_role("radio").count() == 40
    assert page.get_by_role("radio", name="image 1 of 40", exact=True).is_checked()
    page.get_by_role("radio", name="image 1 of 40", exact=True).focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#pictures figcaption")).to_have_text("image 31 of 40")
    strip, chosen = (page.locator(f"#images {each}").bounding_box() for each in (".thumbnails", "label:has(:checked)"))
    assert strip["y"] <= chosen["y"]
    assert chosen["y"] + chosen["height"] <= strip["y"] + strip["height"]
    page.get_by_role("radio", name="image 26 of 40", exact=True).click()
    expect(page.locator("#pictures figcaption")).to_have_text("image 26 of 40")


@pytest.mark.parametrize("width", [1400, 320])
def test_axe_finds_nothing_among_many_images(look, axe, many, width):
    page = look("", many, width=width)
    page.wait_for_timeout(200)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(150)
        found = axe.run(page, options={"rules": {"target-size": {"enabled": True}}}).response["violations"]
        assert [(scheme, each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []


def test_bars_have_the_hues_of_their_legend(look, many):
    page = look("layer=3", many)
    bars = "[...document.querySelectorAll('.unit .share')].map(bar => getComputedStyle(bar).backgroundColor)"
    texts = page.locator(".unit > .number:last-child").all_text_contents()
    assert page.evaluate(bars) == [BLUE if text.startswith("−") else RED for text in texts]
    assert {text.startswith("−") for text in texts} == {True, False}
    assert set(look("layer=4", many).evaluate(bars)) == {GREEN}


def test_numbers_are_written_as_on_pictures(browser):
    """Of random numbers of all sizes, by the page's own function; they lie on no edge between two digits."""
    rng = np.random.default_rng(0)
    values = [*(rng.normal(size=400) * 10.0 ** rng.integers(-12, 12, 400)), 0, 1, -1, 100, 999.9, 1000, 1e-4, -1234567]
    source = (SCRIPTS / "01_data.js").read_text()
    functions = [re.search(rf"^function {name}\(.*?^}}", source, re.S | re.M)[0] for name in ("real", "figure")]
    page = browser.new_page()
    written = page.evaluate(
        f"values => {{ {' '.join(functions)}; return values.map(figure); }}", list(map(float, values))
    )
    page.close()
    assert written == [number(float(value)) for value in values]
