"""Whoever comes, with whatever: both themes, three widths, screen readers, paper, old browsers."""

import pytest

WIDTHS = (1400, 320)  # a screen, and the least that WCAG asks for
RULES = {"rules": {"target-size": {"enabled": True}}}  # of WCAG 2.2, which axe leaves out unless asked
STATES = ("layer=3", "layer=0&map=2&compare=1", "layer=6", "view=why&contour=1", "view=learning")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("state", STATES)
def test_nothing_is_found_by_axe(look, axe, state, width):
    page = look(state, width=width)
    page.wait_for_timeout(200)
    if state == "layer=3":
        page.keyboard.press("ArrowRight")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(150)
        page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")  # where the side column covers nothing
        found = axe.run(page, options=RULES).response["violations"]
        assert [(scheme, each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found] == []


@pytest.mark.parametrize("state", STATES)
def test_no_page_is_wider_than_the_screen(look, state):
    page = look(state, width=320)
    for width in (320, 380, 800, 1400):
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


def test_without_decompression_it_says_what_it_needs(browser, made, close):
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
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#left-out li").first.is_visible()
    assert page.locator("#to-kernels").is_hidden()


def test_tab_reaches_one_map_and_one_layer(look):
    page = look("layer=3")
    assert page.locator('#maps button[tabindex="0"]').count() == 1
    assert page.locator('#list a[tabindex="0"]').count() == 1


def test_letters_need_not_be_keys(look, until):
    page = look()
    page.keyboard.press("?")
    page.get_by_label("Letters, digits and signs are keys").uncheck()
    page.keyboard.press("Escape")
    until(page, "document.activeElement === document.body")
    for key in ("j", "/", "2", "?"):
        page.keyboard.press(key)
    assert page.evaluate("location.hash") in ("", "#")
    assert page.locator("#help").is_hidden()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("location.hash") == "#layer=1"


def test_arrows_scroll_a_pane_that_is_cut_off(look):
    page = look("layer=3", width=320)
    pane = page.locator("#stats")
    pane.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert pane.evaluate("pane => pane.scrollLeft") > 0
    assert page.evaluate("document.activeElement.id") == "stats"


def test_what_is_focused_is_not_under_the_strip(look):
    page = look("layer=3&sort=channel", width=320)
    page.set_viewport_size({"width": 320, "height": 500})
    page.locator("#maps button").first.focus()
    for _ in range(11):
        page.keyboard.press("ArrowRight")
    for _ in range(11):
        page.keyboard.press("ArrowLeft")
        place = page.evaluate("document.activeElement.getBoundingClientRect().top")
        assert place >= page.locator("aside").bounding_box()["height"] - 1


def test_a_finger_reads_and_what_it_read_stays(look, made, close):
    page = look("layer=0&map=2", has_touch=True, width=380)
    canvas = page.locator("#stages canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.touchscreen.tap(box["x"] + 4.5 * box["width"] / 12, box["y"] + 1.5 * box["height"] / 12)
    assert close(page.inner_text("#value"), float(made.values["0"][0, 2, 1, 4]))
