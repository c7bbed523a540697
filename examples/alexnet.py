"""What does AlexNet make of a cat?

Its first kernels are edges and colour blobs; its last are beyond naming. The first maps still show the cat, the last
are a few bright places. The overview has one map for each layer, of AlexNet and of a VGG.

    python examples/alexnet.py --out featviz-alexnet

Trained weights are downloaded once (AlexNet 233 MB, VGG-11 507 MB); without a network pass `--weights` and
`--vgg-weights`, files saved with `torch.save(model.state_dict(), ...)`, or `--random` for untrained nets. The cat comes
with scikit-image (`pip install 'torch_featviz[examples]'`); `--image` takes one of yours.
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


def read_photo(path: Path | None) -> Tensor:
    """A photo as `3 h w` in [0, 1]; without a path, Chelsea the cat."""
    if path is not None:
        return read_image(path)
    from PIL import Image  # noqa: PLC0415
    from skimage import data  # noqa: PLC0415  only needed for this photo

    return from_pil(Image.fromarray(data.chelsea()))


def load(info: ModelCard, weights: Path | None, random: bool) -> nn.Module:
    if not random:
        return info.load(weights)
    torch.manual_seed(0)
    return info.build().eval()


def look(info: ModelCard, model: nn.Module, photo: Tensor, out: Path) -> None:
    """First and last kernels and maps."""
    x = info.preprocess(photo)
    with torch.no_grad(), fv.capture(model, [info.low, info.high]) as acts:
        logits = model(x)
    for which, layer in (("first", info.low), ("last", info.high)):
        fv.kernels(model, layer).save(out / f"{which}-kernels.png")
        title = f"{info.name} {layer}: the 64 maps with the highest values"
        fv.feature_maps(acts[layer][0], top=64, title=title).save(out / f"{which}-maps.png")
    answer = fv.predictions(x, logits, info.classes, k=5, card=info, title=f"{info.name} says")
    answer.save(out / "predictions.png")
    best = logits.softmax(1)[0].topk(5)
    for chance, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        print(f"  {chance:>6.1%} {info.classes[index]}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, metavar="FILE", help="a photo of yours")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="AlexNet's state dict")
    parser.add_argument("--vgg-weights", type=Path, metavar="FILE", help="VGG-11's state dict")
    parser.add_argument("--random", action="store_true", help="untrained nets")
    parser.add_argument("--out", type=Path, default=Path("featviz-alexnet"), help="folder of the sheets (%(default)s)")
    arguments = parser.parse_args(argv)
    out = arguments.out
    try:
        photo = read_photo(arguments.image)
        alexnet, vgg = card("alexnet"), card("torchvision:vgg11")
        model = load(alexnet, arguments.weights, arguments.random)
        look(alexnet, model, photo, out)
        fv.overview(model, alexnet.preprocess(photo), title="AlexNet, layer by layer").save(out / "alexnet-layers.png")
        model = load(vgg, arguments.vgg_weights, arguments.random)
        fv.overview(model, vgg.preprocess(photo), title="VGG-11, layer by layer").save(out / "vgg11-layers.png")
    except fv.FeatvizError as error:
        print(f"alexnet: {error}", file=sys.stderr)
        return 1
    print(f"Look at the sheets in {out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
