"""Why and Learning, links to states, the list of keys."""

import base64
import zlib

import numpy as np
import pytest

from torch_featviz.atlas.page import render
from torch_featviz.explain.verdict import ALIKE


def heat(made, image, method, place):
    entry = [each for each in made.data["why"] if each["image"] == image and each["method"] == method][place]
    planes = np.frombuffer(zlib.decompress(base64.b64decode(made.page.blobs[entry["blob"]])), np.uint8)
    high, low = planes.astype(np.uint16).reshape(2, -1)
    values = (high << 8 | low).view(np.float16).astype(float) * 2.0 ** entry["exponent"]
    return entry, values.reshape(entry["height"], entry["width"])


def second(made):
    """The method that stands second, and how it is called."""
    methods = {entry["method"]: entry["title"] for entry in made.data["why"]}
    return list(methods.items())[1]


def test_heatmaps_by_method_and_class(look, made, close):
    method, title = second(made)
    page = look("view=why")
    assert page.locator("#why-grid button").count() == 4
    page.locator("#why-grid button").nth(3).click()
    entry, values = heat(made, 0, method, 1)
    assert page.inner_text("#why-name").startswith(f"{title} for {entry['name']}")
    assert page.evaluate("location.hash") == f"#view=why&method={method}&class={entry['class']}"
    page.wait_for_selector(f"#why-stage .frame[aria-label^='{title}']")
    page.locator("#why-stage canvas").scroll_into_view_if_needed()
    box = page.locator("#why-stage canvas").bounding_box()
    page.mouse.move(box["x"] + 2.5 * box["width"] / 14, box["y"] + 5.5 * box["height"] / 14)
    assert close(page.inner_text("#value"), values[5, 2])
    says = page.inner_text("#why-says")
    assert f"insertion {entry['faithfulness']['insertion']:.2f}" in says
    assert f"at other places {entry['faithfulness']['random_deletion']:.2f}" in says
    assert says.index(entry["faithfulness"]["verdict"]) < says.index("insertion ")
    assert page.locator("#why-mark").is_visible() == entry["faithfulness"]["unmoved"]


def test_each_heatmap_has_its_verdict(look, made):
    page = look("view=why")
    entries = [each for each in made.data["why"] if each["image"] == 0]
    told = page.locator("#why-grid .verdict").all_inner_texts()
    assert told == [each["faithfulness"]["verdict"] for each in entries]
    none = all("✓" not in words for words in told)
    assert page.locator("#why-grid caption").count() == none
    label = page.locator("#why-grid button").first.get_attribute("aria-label")
    assert label.endswith(f": {told[0]}")


def test_heatmaps_are_as_large_as_there_is_room(look):
    widths = []
    for width in (1600, 700):
        page = look("view=why", width=width)
        widths.append(page.locator("#why-grid .frame").first.bounding_box()["width"])
        assert page.locator("#why-scroll").evaluate("(each) => each.scrollWidth <= each.clientWidth")
    assert widths[0] > 150
    assert widths[1] + 13 >= 84, "whole factors of 14 pixels"


def test_why_by_keys(look, made, close):
    page = look("view=why")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    method, title = second(made)
    entry, values = heat(made, 0, method, 1)
    assert (
        page.locator('#why-grid [aria-pressed="true"]')
        .get_attribute("aria-label")
        .startswith(f"{title} for {entry['name']}")
    )
    page.locator("#why-stage .frame").focus()
    page.keyboard.press("ArrowUp")
    assert close(page.inner_text("#value"), values[6, 7])


def test_contours_lie_where_the_heatmap_crosses_half(look, made, close):
    page = look("view=why&contour=1&method=occlusion")
    page.wait_for_selector(".contours")
    entry, values = heat(made, 0, "occlusion", 0)
    crossed = any((values >= share * entry["scale"]["vmax"]).any() for share in (0.5,))
    path = page.locator(".contours path.for").first.get_attribute("d")
    assert bool(path) == crossed
    points = (
        np.array([[float(number) for number in each.split()] for each in path.replace("M", "L").split("L")[1:]]) - 0.5
    )
    rows = points[:, 1]
    whole_row = np.isclose(rows, rows.round(), atol=0.011)
    for x, y in points[whole_row]:
        left, share = int(x), x - int(x)
        between = (1 - share) * values[round(y), left] + share * values[round(y), min(13, left + 1)]
        assert between == pytest.approx(0.5 * entry["scale"]["vmax"], abs=0.02 * np.ptp(values))
    page.get_by_label("Contour").uncheck()
    page.wait_for_selector(".contours", state="detached")


def test_learning_by_slider_keys_and_findings(look, made, close):
    page = look("view=learning")
    steps = made.data["learning"]["steps"]
    assert page.inner_text("#step-now") == f"{steps[-1]} of {steps[-1]}"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("location.hash") == f"#view=learning&step={steps[-2]}"
    page.locator("#step").focus()
    page.keyboard.press("Home")
    assert page.inner_text("#step-now") == f"{steps[0]} of {steps[-1]}"
    assert page.locator("#frame figcaption").inner_text().endswith(f"at step {steps[0]}")
    finding = made.data["learning"]["findings"][0]
    page.locator("#findings button").first.click()
    assert page.evaluate("location.hash").endswith(f"step={finding['step']}")
    page.locator("#learning-of").select_option("maps")
    assert page.locator("#frame figcaption").inner_text().startswith("maps of 0")
    page.locator("#learning-layer").select_option("3")
    assert page.locator("#frame figcaption").inner_text().startswith("maps of 3")
    curve = next(each for each in made.data["learning"]["curves"] if each["layer"] == "3")
    value = curve["values"][steps.index(finding["step"])]
    text = page.locator("#curves b").first.inner_text()
    words = {None: "–", "nan": "NaN"}
    assert text == words[value] if value in words else close(text, value)


def test_learning_plays_and_stops(look, expect, made):
    page, steps = look("view=learning"), made.data["learning"]["steps"]
    page.locator("#play").click()
    expect(page.locator("#step-now")).to_have_text(f"{steps[0]} of {steps[-1]}")
    page.locator("#play").click()
    assert page.locator("#play").get_attribute("aria-pressed") == "false"


def test_a_link_restores_the_state(look, expect, made):
    page = look()
    page.locator('#list a[data-layer="3"]').click()
    expect(page.locator("#layer-name")).to_have_text("3")
    page.get_by_label("Order").select_option("channel")
    page.get_by_label("Compare with").select_option("1")
    expect(page.locator('#maps [data-place="4"] canvas')).to_have_count(2)
    page.locator('#maps [data-place="4"]').click()
    link = page.evaluate("location.hash")
    assert link == "#layer=3&map=4&sort=channel&compare=1"
    again = look(link[1:])
    assert again.inner_text("#large-title") == "Channel 4 of layer 3"
    assert again.locator("#stages canvas").count() == 2
    assert again.get_by_label("Order").input_value() == "channel"
    again.evaluate("location.hash = '#layer=1'")
    expect(again.locator("#layer-name")).to_have_text("1")
    assert again.locator("#large").is_hidden()


@pytest.mark.parametrize(
    "state", ["layer=nobody&map=x&image=99&view=never&alpha=7&step=-1&%zz", "map=4000", "__proto__=1&constructor=2"]
)
def test_what_a_link_does_not_know_is_ignored(look, state):
    page = look(state.replace("view=never", "v"))
    assert page.inner_text("#layer-name") == "0"
    assert page.locator("#large").is_hidden()


def test_keys_are_listed(look):
    page = look()
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()
    page.locator("#keys").click()
    assert "find a layer" in page.inner_text("#help")


def test_what_is_left_out_is_said(look, made):
    page = look()
    page.locator("#left-out summary").click()
    assert page.locator("#left-out li").all_inner_texts() == list(made.page.left_out)


@pytest.mark.parametrize(
    ("insertion", "deletion", "words"),
    [
        (
            0.9,
            0.1,
            [
                "back sooner than the same heatmap at other places, as",
                "fall sooner than the same heatmap at other places, as",
            ],
        ),
        (
            0.2,
            0.8,
            [
                "back later than the same heatmap at other places, which",
                "fall later than the same heatmap at other places, which",
            ],
        ),
        (0.5004, 0.4996, ["back no sooner and no later than", "fall no sooner and no later than"]),
    ],
    ids=["better", "worse", "the same"],
)
def test_what_faithfulness_means_in_a_sentence(look, made, tmp_path, insertion, deletion, words):
    figures = {"insertion": insertion, "deletion": deletion, "random_insertion": 0.5, "random_deletion": 0.5}
    figures |= {"similarity": 0.97, "unmoved": True, "mark": "=", "verdict": f"= {ALIKE}", "held_back": ALIKE}
    why = [{**entry, "faithfulness": figures} for entry in made.data["why"]]
    file = tmp_path / "page.html"
    file.write_text(render("page", {**made.data, "why": why}, made.page.blobs), encoding="utf-8")
    page = look("view=why", file)
    says = page.inner_text("#why-says")
    assert [each in says for each in words] == [True, True]
    assert "likeness 0.97" in says
    assert "the same model with random weights has nearly the same heatmap" in says
    assert "shows the image, not what the model learnt" in page.inner_text("#why-mark")
