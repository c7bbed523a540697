"""What does one convolution do to a photo, before anything is learnt?

Filters made by hand slide over a real photo: Sobel's two, a vertical edge, and a bank of four edges whose answers
then pass a ReLU and a 2x2 max-pool. Look at which edges light up: red is a positive answer, blue a negative one.
After the ReLU only red is left; after pooling the map has half the size and the edges are still there.

    python examples/filters.py --out featviz-filters

Offline: the photo comes with scikit-image (`pip install 'torch_featviz[examples]'`); `--image` takes one of yours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import torch_featviz as fv
from torch_featviz.zoo import SOBEL_X, SOBEL_Y, VERTICAL_EDGE, FilterBank, from_pil, read_image

FILTERS = ("dark left, light right", "light left, dark right", "dark above, light below", "light above, dark below")
STAGES = ("before the ReLU", "after the ReLU", "after the ReLU and 2×2 max-pool")


def read_photo(path: Path | None) -> Tensor:
    """A photo as grey `1 h w` in [0, 1]; without a path, a man with a camera."""
    if path is not None:
        return read_image(path, "L")
    from PIL import Image  # noqa: PLC0415
    from skimage import data  # noqa: PLC0415  only needed for this photo

    return from_pil(Image.fromarray(data.camera()).resize((256, 256)), "L")


@torch.no_grad()
def show_edges(photo: Tensor, out: Path) -> None:
    """Sobel in both directions, the magnitude of the two, and the plain vertical edge."""
    x, y, vertical = FilterBank([SOBEL_X, SOBEL_Y, VERTICAL_EDGE])(photo[None]).conv[0]
    edges = {"Sobel x": x[None], "Sobel y": y[None], "vertical edge": vertical[None]}
    fv.feature_maps(edges, title="Edges of a photo, by three filters of 3 × 3").save(out / "3-edges.png")
    magnitude = torch.hypot(x, y)
    title = "Sobel magnitude: how strong an edge is, in whatever direction"
    fv.feature_maps(magnitude[None], scale=fv.Scale(vmin=0), title=title).save(out / "4-magnitude.png")
    strong = (magnitude > magnitude.max() / 4).float().mean()
    print(f"Sobel: x reaches ±{x.abs().max():.2f}, y ±{y.abs().max():.2f}; {strong:.1%} of the photo is strong edge.")


@torch.no_grad()
def show_bank(photo: Tensor, out: Path) -> None:
    """The four filters with their values, and what each stage makes of the photo, all on one scale."""
    bank = FilterBank()
    scale = fv.Scale(symmetric=True, vmax=1)
    filters = fv.pixels(bank.conv.weight, scale=scale, decimals=0, labels=FILTERS, title="Filters 0 to 3")
    filters.save(out / "5-filters.png")
    maps = bank(photo[None])
    scale = fv.Scale(symmetric=True).fit(maps.conv)
    for number, (words, stage) in enumerate(zip(STAGES, maps, strict=True), 6):
        title = f"The photo through filters 0 to 3, {words}: {stage.shape[2]} × {stage.shape[3]}"
        fv.feature_maps(stage[0], scale=scale, title=title).save(out / f"{number}-bank-{stage_name(number)}.png")
        print(f"{words}: {tuple(stage.shape)}, from {stage.min():.2f} to {stage.max():.2f}")


def stage_name(number: int) -> str:
    return ("conv", "relu", "pool")[number - 6]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, metavar="FILE", help="a photo of yours")
    parser.add_argument("--out", type=Path, default=Path("featviz-filters"), help="folder of the sheets (%(default)s)")
    parser.add_argument("--crop", type=int, default=16, help="side of the piece whose values are written out")
    arguments = parser.parse_args(argv)
    try:
        photo, out = read_photo(arguments.image), arguments.out
        fv.images(photo, title="The photo").save(out / "1-photo.png")
        show_piece(photo, arguments.crop, out)
        show_edges(photo, out)
        show_bank(photo, out)
    except fv.FeatvizError as error:
        print(f"filters: {error}", file=sys.stderr)
        return 1
    print(f"Look at the sheets in {out}.")
    return 0


def show_piece(photo: Tensor, side: int, out: Path) -> None:
    """A small piece of the photo, a quarter from its top and in its middle, with its values as bytes."""
    top, left = photo.shape[1] // 4, photo.shape[2] // 2
    piece = (photo[:, top : top + side, left : left + side] * 255).round().byte()
    title = f"What the computer sees: {side} × {side} pixels, from row {top} and column {left}"
    fv.pixels(piece, title=title).save(out / "2-pixels.png")


if __name__ == "__main__":
    raise SystemExit(main())
