"""Opens the atlas of seven networks in Chromium, visits every layer of each, and photographs what is there.

    python benchmarks/look_at_atlas.py --out FOLDER

Of every page it reads values under the pointer and holds them against the network's own tensors, from hooks; it fails
on a console error, on any request but for the page itself, on a wrong value, and on whatever axe finds.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright
from torch import Tensor, nn

import torch_featviz as fv
from benchmarks.peers import Functional
from torch_featviz.zoo import ModelCard, card, read_image, write_image_folder

FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-component-update")
RULES = {"rules": {"target-size": {"enabled": True}}}  # of WCAG 2.2, which axe leaves out unless asked
PLACES = 6  # at which each network's values are read
SIZES = ((1400, 1000), (800, 1000), (380, 900))


def networks(demo: Path) -> Iterator[tuple[str, ModelCard, nn.Module, Tensor]]:
    """Name, card, net and an image of each; the XO net is the one that `featviz demo` kept."""
    torch.manual_seed(0)
    from skimage import data  # noqa: PLC0415

    cat = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1) / 255
    for name in ("alexnet", "torchvision:resnet18", "torchvision:squeezenet1_1", "torchvision:vit_b_16"):
        yield name.rpartition(":")[2], card(name), card(name).build().eval(), cat
    functional = ModelCard("functional", Functional, (3, 32, 32), mean=(0.5,), std=(0.25,))
    yield "functional", functional, functional.build().eval(), cat
    yield "lite0", card("efficientnet_lite0"), card("efficientnet_lite0").load(), cat
    drawing = read_image(next(iter(sorted(write_image_folder(demo / "drawings").rglob("*.png")))))
    yield "xo", card("xo_deep"), card("xo_deep").load(next(demo.glob("seed*/xo_deep.pt"))), drawing


def returned(net: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """What each leaf that runs once gave: maps (c h w), or tokens (t c)."""
    found: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: found.setdefault(name, []).append(out.clone()))
        for name, module in net.named_modules()
        if not list(module.children()) and not getattr(module, "inplace", False)
    ]
    with torch.no_grad():
        net(image)
    for hook in hooks:
        hook.remove()
    once = {name: outputs[0] for name, outputs in found.items() if len(outputs) == 1}
    return {name: output[0] for name, output in once.items() if output.dim() in (3, 4)}


def until(page: Page, script: str) -> None:
    """Playwright's own waiting needs eval, which the page forbids."""
    for _ in range(500):
        if page.evaluate(script):
            return
        page.wait_for_timeout(20)
    raise TimeoutError(script)


def check_values(page: Page, url: str, values: dict[str, Tensor], draw: random.Random) -> int:
    """Read places of maps under the pointer; how many were right."""
    names = draw.sample(sorted(values), min(PLACES, len(values)))
    for name in names:
        page.goto("about:blank")
        page.goto(f"{url}#layer={name}")
        until(page, "performance.getEntriesByName('atlas-first-view').length > 0")
        box = page.locator("#maps canvas").first.bounding_box()
        assert box is not None
        seen = min(box["height"], 990 - box["y"])  # a matrix of many tokens goes on below the screen
        page.mouse.move(box["x"] + draw.random() * box["width"], box["y"] + draw.random() * seen)
        said, at = page.inner_text("#value"), page.inner_text("#place")
        place = [int(number) for number in re.findall(r"(?:token|channel|row|column) (\d+)", at)]
        expected = float(values[name][tuple(place)])
        if not abs(float(said) - expected) <= abs(expected) * 1.1e-3 + 1e-9 * float(values[name].abs().max()):
            raise AssertionError(f"{name}: {at} is {expected}, the page says {said}")
    return len(names)


def visit_all(page: Page, url: str) -> int:
    """Every layer by the arrow key, and the first map of each opened and closed."""
    page.goto("about:blank")
    page.goto(f"{url}#layer=input")
    until(page, "performance.getEntriesByName('atlas-first-view').length > 0")
    count = page.evaluate("document.querySelectorAll('#list a').length")
    for n in range(1, count):
        page.keyboard.press("ArrowDown")
        until(page, f"performance.getEntriesByName('atlas-layer').length >= {n}")
        if page.locator("#maps button.map").count():
            page.keyboard.press("ArrowRight")
            page.keyboard.press("Enter")
            until(page, "location.hash.includes('map=')")
            page.keyboard.press("Escape")
            until(page, "!location.hash.includes('map=')")
    return int(count)


def photograph(page: Page, url: str, out: Path) -> None:
    """Each view at three widths in both themes, where axe finds nothing."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            for view in ("walk", "why"):
                page.goto("about:blank")
                page.goto(f"{url}#view={view}")
                page.wait_for_timeout(600)
                sideways = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                assert sideways <= 0, f"{url} {view} scrolls sideways at {width}"
                found = Axe().run(page, options=RULES).response["violations"]
                assert not found, f"{url} {view} {scheme} {width}: {[(each['id'], each['impact']) for each in found]}"
                page.screenshot(path=out / f"{Path(url).stem}-{view}-{width}-{scheme}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("featviz-atlas"))
    parser.add_argument("--demo", type=Path, default=Path("featviz-demo"), help="what `featviz demo` wrote")
    options = parser.parse_args()
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        for name, info, net, image in networks(options.demo):
            x = info.preprocess(image)
            atlas = fv.atlas(net, x, card=info, names=["drawing" if name == "xo" else "cat"])
            file = atlas.save(options.out / f"{name}.html")
            url = file.absolute().as_uri()
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda r, url=url: wrong.append(r.url) if not r.url.startswith((url, "data:")) else None)
            listed = {layer["name"] for layer in atlas.data["layers"]}  # those that only pad or pass on are not
            values = {layer: maps for layer, maps in returned(net, x).items() if layer in listed}
            places = check_values(page, url, values, random.Random(0))
            layers = visit_all(page, url)
            photograph(page, url, options.out)
            page.close()
            size = file.stat().st_size / 1e6
            print(f"{name}: {layers} layers visited, {places} values right, axe silent, {size:.1f} MB", flush=True)
        browser.close()
    print("\n".join(wrong) or "no console error, no request")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
