"""Four small networks learn to tell a circle from a cross: which is best, and what does each see?

The plain net, one with a third convolution, one without pooling (40 times the parameters), and one with twice the
filters are trained on the same 1,700 drawings. Look at the table first, then at the kernels, then at what each layer
makes of a circle and a cross: early maps are strokes, late ones are places.

    python examples/xo.py --out featviz-xo

Offline: the drawings are made here. The net without pooling has 260 million parameters and takes minutes for an epoch,
so it is left out unless asked for: `--nets xo xo_deep xo_nopool xo_wide`. `--epochs 3` is a first look.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import torch_featviz as fv
from torch_featviz.zoo import XO, TrainingCurves, card, train_xo

NETS = ("xo", "xo_deep", "xo_nopool", "xo_wide")
QUICK = ("xo", "xo_deep", "xo_wide")


def convolutions(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def show(name: str, model: nn.Module, history: TrainingCurves, out: Path) -> None:
    """The sheets of one trained net."""
    loss = {"train": history.train_loss, "valid": history.valid_loss}
    accuracy = {"train": history.train_accuracy, "valid": history.valid_accuracy}
    fv.curves({"loss": loss, "accuracy": accuracy}, title=f"{name}: training").save(out / f"{name}-curves.png")
    layers = convolutions(model)
    for layer in layers:
        fv.kernels(model, layer).save(out / f"{name}-kernels-{layer.split('.')[1]}.png")
    test = XO("test")
    drawn = {kind: test[next(i for i in range(len(test)) if test[i][1] == k)][0] for k, kind in enumerate(test.classes)}
    with torch.no_grad(), fv.capture(model, layers) as acts:
        model(torch.stack(list(drawn.values())))
    for layer in layers:
        maps = dict(zip(drawn, acts[layer], strict=True))
        title = f"{name} {layer}: what it makes of a circle and a cross"
        fv.feature_maps(maps, title=title).save(out / f"{name}-maps-{layer.split('.')[1]}.png")
    fv.overview(model, drawn["cross"][None], title=f"{name}: a cross, layer by layer").save(
        out / f"{name}-overview.png"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=QUICK, choices=NETS, metavar="NET", help="to train")
    parser.add_argument("--epochs", type=int, default=12, help="times through the drawings (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("featviz-xo"), help="folder of the sheets (%(default)s)")
    arguments = parser.parse_args(argv)
    out, trained = arguments.out, {}
    try:
        fv.samples(XO("train", arguments.seed), n=12, title="What they learn from").save(out / "samples.png")
        for name in arguments.nets:
            model, history, _ = train_xo(arguments.seed, epochs=arguments.epochs, model=card(name).build())
            show(name, model, history, out)
            trained[name] = model
        result = fv.compare(trained, DataLoader(XO("test", arguments.seed), 75))
        result.picture(title="Circle or cross, on drawings held out").save(out / "networks.png")
    except fv.FeatvizError as error:
        print(f"xo: {error}", file=sys.stderr)
        return 1
    print(result)
    print(f"Look at the sheets in {out}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
