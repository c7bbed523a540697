"""Makes the pictures of the README: a minute of training, then the sheets. `python examples/pictures.py`"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import warnings
from itertools import islice
from pathlib import Path

import atlas
import broken
import filters
import torch
import watch
from torch.utils.data import DataLoader

import torch_featviz as fv
from torch_featviz.errors import FindingWarning
from torch_featviz.zoo import XO, train_xo

PICTURES = Path(__file__).parent / "pictures"


def main() -> None:
    model, _, result = train_xo(0)
    print(f"held-out accuracy {result.accuracy:.1%}")
    fv.kernels(model, "features.conv1").save(PICTURES / "kernels.png")
    test = XO("test")
    drawn = {kind: test[next(i for i in range(len(test)) if test[i][1] == k)][0] for k, kind in enumerate(test.classes)}
    with torch.no_grad(), fv.capture(model, "features.relu1") as acts:
        model(torch.stack(list(drawn.values())))
    maps = dict(zip(drawn, acts["features.relu1"], strict=True))
    title = "What the first convolution, after its ReLU, makes of a circle and a cross"
    fv.feature_maps(maps, scale=fv.Scale(vmin=0), title=title).save(PICTURES / "maps.png")
    images = torch.stack(list(drawn.values()))
    paper = images.flatten(1).median(1).values[:, None, None, None]
    methods = ["gradcam", "integrated_gradients", "occlusion"]
    title = "Why a circle is a circle, and a cross a cross"
    fv.attributions(model, images, methods=methods, classes=test.classes, baselines=paper, title=title).save(
        PICTURES / "why.png"
    )
    best = fv.top_patches(model, DataLoader(test, batch_size=50), "features.conv3")
    fv.exemplars(best, range(4)).save(PICTURES / "units.png")
    loader = DataLoader(XO("train"), 16, shuffle=True, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FindingWarning)
        watched = broken.train(broken.shut_off(), islice(loader, 60))
    title = "A network whose third convolution (4) begins with a bias of −10"
    watched.report(title=title).save(PICTURES / "watch.png")
    with tempfile.TemporaryDirectory() as folder:
        watch.train(160, Path(folder)).film("3", "maps").save(PICTURES / "film.png")
    with tempfile.TemporaryDirectory() as folder:
        filters.show_edges(filters.read_photo(None), Path(folder))
        (PICTURES / "sobel.png").write_bytes((Path(folder) / "3-edges.png").read_bytes())
        page = Path(folder) / "atlas.html"
        atlas.main(["--out", str(page)])
        photograph(page, "layer=_blocks.1._depthwise_conv", PICTURES / "atlas.png")


def photograph(page: Path, state: str, out: Path) -> None:
    """A page in a state of its own, as Chromium shows it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("the page cannot be photographed: there is no Chromium here.")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    options += ["--virtual-time-budget=5000", "--window-size=1400,900"]
    where = f"{page.absolute().as_uri()}#{state}"
    subprocess.run([chromium, *options, f"--screenshot={out}", where], check=True)


if __name__ == "__main__":
    main()
