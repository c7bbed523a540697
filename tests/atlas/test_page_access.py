"""Whoever comes, with whatever: both themes, three widths, screen readers, paper, old browsers."""

import pytest

STATES = ("layer=3", "layer=0&map=2&compare=1", "layer=6", "view=why&contour=1", "view=learning")


@pytest.mark.parametrize("state", STATES)
def test_nothing_is_found_by_axe(look, axe, state):
    page = look(state)
    page.wait_for_timeout(200)
    if state == "layer=3":
        page.keyboard.press("ArrowRight")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(150)
        found = axe.run(page).response["violations"]
        assert [(scheme, each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []


@pytest.mark.parametrize("state", STATES)
def test_no_page_is_wider_than_the_screen(look, state):
    page = look(state, width=380)
    for width in (380, 800, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#pictures img").first.is_visible()
        assert page.locator("#top").is_visible()


def test_the_chosen_image_stays_in_sight(look):
    for width in (1400, 380):
        page = look("layer=3", width=width)
        page.evaluate("scrollTo(0, 700)")
        box = page.locator("#pictures img").first.bounding_box()
        assert 0 <= box["y"] <= 300


def test_without_scripts_it_says_what_it_needs(look):
    page = look(java_script_enabled=False)
    assert "JavaScript" in page.inner_text("body")
    assert page.locator("#page").is_hidden()


def test_without_decompression_it_says_what_it_needs(browser, made):
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(made.file.as_uri())
    assert "DecompressionStream" in page.inner_text("#needs")
    page.close()


def test_paper_has_no_controls_and_no_grey(look):
    page = look("layer=3", scheme="dark")
    page.emulate_media(media="print")
    assert page.locator("#map-controls").is_hidden()
    assert page.locator("#layers").is_hidden()
    assert page.evaluate("getComputedStyle(document.querySelector('#maps')).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


def test_tab_reaches_one_map_and_one_layer(look):
    page = look("layer=3")
    assert page.locator('#maps button[tabindex="0"]').count() == 1
    assert page.locator('#list a[tabindex="0"]').count() == 1
