"""A page of a small network, opened in a real browser from its file."""

import importlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_featviz as fv
from torch_featviz.atlas import atlas
from torch_featviz.errors import FindingWarning
from torch_featviz.training import Monitor

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
NAMES = ("first.png", "second.png")
CLASSES = ("circle", "cross", "square", "star")


def _until(page, script):
    """Wait for what a script says; Playwright's own way needs eval, which the page forbids."""
    for _ in range(200):
        if page.evaluate(script):
            return
        page.wait_for_timeout(25)
    pytest.fail(f"never came true: {script}")


def _net():
    torch.manual_seed(3)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(12 * 16, 4))


def _train(net, folder):
    """Eight steps, of which the last goes wrong, so that there is a finding."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with Monitor(net, every=2, probe=torch.rand(1, 3, 14, 14), to=folder) as watch:
        for step in range(9):
            with watch.step():
                images = torch.rand(4, 3, 14, 14) * (1.0 if step < 8 else float("nan"))
                F.cross_entropy(net(images), torch.randint(0, 4, (4,))).backward()
                optimizer.step()
                optimizer.zero_grad()


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The page's file, and by layer and image what it must show, from hooks that know nothing of the library."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.warns(FindingWarning):
        _train(_net(), folder / "run")
    net = _net().eval()
    images = torch.rand(2, 3, 14, 14)
    loader = [torch.rand(8, 3, 14, 14) for _ in range(4)]
    values = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: values.update({name: out.detach().clone()}))
        for name, layer in net.named_children()
    ]
    with torch.no_grad():
        answer = net(images)
    for hook in hooks:
        hook.remove()
    card = fv.ModelCard("shapes", _net, (3, 14, 14), classes=CLASSES)
    asked = {"methods": ["gradcam", "occlusion"], "loader": loader, "training": folder / "run"}
    page = atlas(net, images, card=card, names=NAMES, **asked)
    file = page.save(folder / "page.html")
    return SimpleNamespace(file=file, net=net, values=values, chances=answer.softmax(1), data=page.data, page=page)


def _needed(module):
    """A module of the browser's; where it is missing its tests are skipped, or fail if the browser is required."""
    try:
        return importlib.import_module(module)
    except ImportError:
        _missing()


def _missing():
    why = "needs Chromium and Playwright: apt-get install chromium; pip install playwright axe-playwright-python"
    (pytest.fail if os.environ.get("FEATVIZ_BROWSER") == "required" else pytest.skip)(why)


@pytest.fixture(scope="session")
def browser():
    path = shutil.which("chromium") or _missing()
    with _needed("playwright.sync_api").sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture(scope="session")
def expect():
    return _needed("playwright.sync_api").expect


@pytest.fixture(scope="session")
def close():
    """Whether a text is a value, to the three digits with which the page writes it."""
    return lambda text, value: float(text.replace("−", "-")) == pytest.approx(float(value), rel=5.5e-3, abs=1e-9)


@pytest.fixture(scope="session")
def axe():
    return _needed("axe_playwright_python.sync_playwright").Axe()


@pytest.fixture(scope="session")
def until():
    return _until


@pytest.fixture
def look(browser, made):
    """Open a page's file in a state; at the end, no error was logged and nothing asked for but the file."""
    opened = []

    def open_page(state="", file=None, *, width=1400, scheme="light", **context):
        size = {"width": width, "height": 900}
        page = browser.new_context(viewport=size, color_scheme=scheme, **context).new_page()
        file = file or made.file
        wrong, asked = [], []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.set_default_timeout(5000)
        opened.append((page, wrong, asked, Path(file).as_uri()))
        page.goto(f"{Path(file).as_uri()}#{state}")
        if context.get("java_script_enabled", True) and "view=" not in state:
            _until(page, "performance.getEntriesByName('atlas-first-view').length > 0")
        return page

    yield open_page
    for page, wrong, asked, address in opened:
        page.context.close()
        assert wrong == []
        assert [
            url for url in asked if not url.startswith(("data:", "blob:")) and url.partition("#")[0] != address
        ] == []
