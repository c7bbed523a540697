"""Compiles every kernel for an H100, which takes no GPU; run by `test_compiles` in a process of its own.

What is interpreted is Python, and more than Triton's compiler takes.
"""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torch_featviz.capture.reduce import kernels
from torch_featviz.picture import kernels as drawing
from torch_featviz.training import kernels as training

LONG, INT, FLOAT, DOUBLE = "*i64", "*i32", "*fp32", "*fp64"
FACTORS = [f"{color}_{what}" for color in ("red", "green", "blue") for what in ("factor", "shift")]


def compiled(kernel, types, **constants):
    """The machine code of one variant."""
    types = {name: types[name] for name in kernel.arg_names if name in types}
    if triton.__version__ < "3.3":
        source = ASTSource(kernel, types, constants=constants)
    else:
        both = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
        source = ASTSource(kernel, both, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def main():
    longs = "outputs items programs folds totals spans place local chosen seen best where images positions out"
    types = dict.fromkeys(longs.split(), LONG) | {"counts": INT}
    types |= dict.fromkeys(("floats", "ends", "sums", "extremes", "values"), DOUBLE)
    types |= dict.fromkeys(("bins", "width", "k"), "i32")
    sizes = []
    for kind, one in enumerate((FLOAT, "*fp16", "*bf16", DOUBLE)):
        mine, flags = types | {"outputs": one if kind else LONG}, {"KIND": kind, "ONE": kind > 0}
        for channels, histogram, top in ((True, False, False), (False, True, False), (True, True, True)):
            kept = {"CHANNELS": channels, "HISTOGRAM": histogram, "TOP": top}
            sizes.append(compiled(kernels.read, mine, **flags, **kept))
        sizes.append(compiled(kernels.count, mine, NB=64, SYMMETRIC=kind > 1, **flags))
    sizes.append(compiled(kernels.locate, types, ONE=False))
    sizes += [compiled(kernels.fold_channels, types, G=8, LANES=lanes) for lanes in (4, 32)]
    sizes.append(compiled(kernels.fold_bins, types | {"counts": LONG}, NB=64, SYMMETRIC=False))
    sizes += [compiled(kernels.select, types, KP=k, N=64, LANES=16, WIDE=k > 1) for k in (1, 16, 128)]
    sizes.append(compiled(kernels.probe, types))
    drawn = dict.fromkeys(drawing.overlay.arg_names, "i32") | dict.fromkeys(("words", "table"), INT)
    drawn |= dict.fromkeys(("image", "heatmap", "lows", "highs"), FLOAT)
    drawn |= dict.fromkeys(("low", "high", "share", "rounded", *FACTORS), "fp32")
    sizes += [compiled(drawing.overlay, drawn, OWN=own, SYMMETRIC=own, GRAY=not own) for own in (False, True)]
    added = {"addresses": LONG, "programs": LONG, "out": DOUBLE, "at": "i32"}
    sizes += [compiled(training.squares, added, KIND=kind) for kind in range(4)]
    print(len(sizes), "variants", file=sys.stderr)
    return 0 if all(sizes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
