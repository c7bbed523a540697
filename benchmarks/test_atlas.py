"""The atlas: what making a page costs, how large it is, and how fast it shows in headless Chromium.

pytest benchmarks/test_atlas.py --benchmark-enable -s
"""

import shutil
import statistics
import zlib

import pytest
import torch

from torch_featviz.atlas import atlas
from torch_featviz.atlas.layers import put_layers
from torch_featviz.atlas.pack import Blobs
from torch_featviz.bench import paired, settled
from torch_featviz.inspect.walk import walk
from torch_featviz.model.inputs import Inputs
from torch_featviz.zoo import card

MEGABYTES = {"alexnet": 12, "torchvision:resnet50": 25}
FORWARDS = 10  # that seeing all layers may take: two are run, one of which also traces receptive fields
ENCODING = 2.0  # times the time of deflating the same bytes
FIRST_VIEW, LAYER_CHANGE = 1000, 100  # ms
VISITS, CHANGES = 5, 14  # medians over visits, to each of so many layers
PAUSE = 150  # ms between two keys, which are pressed as fast as a person can
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-component-update")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of each network, with random weights, about one image."""
    folder, made = tmp_path_factory.mktemp("atlas"), {}
    for name in MEGABYTES:
        torch.manual_seed(0)
        info = card(name)
        methods = None if name == "alexnet" else ()  # whose cost is their own
        page = atlas(info.build().eval(), torch.randn(1, *info.input_size), card=info, names=["noise"], methods=methods)
        made[name] = page.save(folder / f"{name.rpartition(':')[2]}.html")
    return made


@pytest.mark.parametrize("name", MEGABYTES)
def test_size(pages, name):
    size = pages[name].stat().st_size / 1e6
    print(f"\n{name}: {size:.1f} MB (at most {MEGABYTES[name]})")
    assert size <= MEGABYTES[name]


def test_seeing_all_layers_costs_a_few_forwards():
    info = card("alexnet")
    model, images = info.build().eval(), torch.randn(1, *info.input_size)
    inputs = Inputs(images)

    def forward():
        with torch.no_grad():
            model(images)

    found = settled(lambda: paired(lambda: walk(model, inputs), forward, rounds=15), lambda each: each.within(FORWARDS))
    print(f"\nseeing all layers of AlexNet: {found} forwards")
    assert found.within(FORWARDS)


def test_encoding_costs_little_more_than_deflating():
    info = card("alexnet")
    seen = walk(info.build().eval(), Inputs(torch.randn(1, *info.input_size)))
    blobs = Blobs()
    layers, _ = put_layers(blobs, seen, 24e6)
    values = [
        each.half().numpy().tobytes()
        for layer in seen.layers
        for each in (layer.values, layer.kernels)
        if each is not None
    ]
    planes = [bytes(data[1::2]) + bytes(data[::2]) for data in values]
    assert len(planes) == sum(len(layer["maps"]["blobs"]) + bool(layer["kernels"]) for layer in layers)

    def deflate():
        for data in planes:
            zlib.compress(data, 6)

    found = settled(
        lambda: paired(lambda: put_layers(Blobs(), seen, 24e6), deflate, rounds=7), lambda each: each.within(ENCODING)
    )
    print(f"\nencoding AlexNet's layers: {found} of deflating the same bytes")
    assert found.within(ENCODING)


@pytest.mark.parametrize("name", MEGABYTES)
def test_first_view_and_change_of_layer(pages, name):
    chromium = shutil.which("chromium")
    assert chromium, "needs Chromium: apt-get install chromium"
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    def visit():
        """When the first view was there, and how long each change of layer took."""
        page = browser.new_page(viewport={"width": 1400, "height": 1000})

        def entries(name, figure, least=1):
            while len(found := page.evaluate(f"performance.getEntriesByName('{name}').map(e => e.{figure})")) < least:
                page.wait_for_timeout(10)  # and not wait_for_function, which the page's policy forbids
            return found

        page.goto(pages[name].as_uri())
        first = entries("atlas-first-view", "startTime")[0]
        for n in range(1, CHANGES + 1):
            page.wait_for_timeout(PAUSE)
            page.keyboard.press("ArrowDown")
            changes = entries("atlas-layer", "duration", n)
        page.close()
        return first, *changes

    def measured():
        return [statistics.median(column) for column in zip(*(visit() for _ in range(VISITS)), strict=True)]

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM))
        found = settled(measured, lambda each: each[0] <= FIRST_VIEW and max(each[1:]) <= LAYER_CHANGE)
        browser.close()
    first, *changes = found
    middle, longest = statistics.median(changes), max(changes)
    print(f"\n{name}: first view {first:.0f} ms, a change of layer {middle:.0f}, to the slowest {longest:.0f} ms")
    assert first <= FIRST_VIEW
    assert longest <= LAYER_CHANGE
