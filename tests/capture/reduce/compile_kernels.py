"""Compiles every kernel for an H100, which takes no GPU; run by `test_compiles` in a process of its own.

What is interpreted is Python, and more than Triton's compiler takes.
"""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torch_featviz.capture.reduce import kernels
from torch_featviz.picture import kernels as drawing

LONG, INT, FLOAT, DOUBLE = "*i64", "*i32", "*fp32", "*fp64"
FACTORS = [f"{color}_{what}" for color in ("red", "green", "blue") for what in ("factor", "shift")]


def compiled(kernel, types, **constants):
    """The machine code of one variant."""
    types = {name: kind for name, kind in types.items() if name in kernel.arg_names}
    if triton.__version__ < "3.3":
        source = ASTSource(kernel, types, constants=constants)
    else:
        both = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
        source = ASTSource(kernel, both, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def main():
    longs = "pointers items tiles folds totals spans owners place new_place new_counts "
    longs += "chosen seen best where images positions"
    types = dict.fromkeys(longs.split(), LONG) | {"counts": INT, "local": INT, "out": LONG}
    types |= dict.fromkeys(("sums", "extremes", "new_extremes", "values"), DOUBLE)
    types |= dict.fromkeys(("bins", "width", "number", "k"), "i32")
    sizes = []
    for wide in (False, True):
        mine = types | dict.fromkeys(("floats", "ends"), DOUBLE if wide else FLOAT)
        for top in (0, 1, 2) if wide else (0, 1):
            all_of_it = top != 2
            flags = {"CHANNELS": all_of_it, "HISTOGRAM": all_of_it, "SYMMETRIC": bool(top), "TOP": top, "WIDE": wide}
            sizes.append(compiled(kernels.read, mine, NB=128, **flags))
        sizes.append(compiled(kernels.fold_channels, mine, G=64))
        sizes.append(compiled(kernels.place_bins, mine, NB=128, SYMMETRIC=wide, G=256))
        sizes.append(compiled(kernels.add_counts, mine | {"counts": LONG}, NB=128, SYMMETRIC=wide))
        sizes += [compiled(kernels.select, mine, KP=k, N=64, LANES=16, WIDE=wide) for k in (1, 16, 128)]
    sizes.append(compiled(kernels.probe, types))
    drawn = dict.fromkeys(drawing.overlay.arg_names, "i32") | dict.fromkeys(("words", "table"), INT)
    drawn |= dict.fromkeys(("image", "heatmap", "lows", "highs"), FLOAT)
    drawn |= dict.fromkeys(("low", "high", "share", "rounded", *FACTORS), "fp32")
    sizes += [compiled(drawing.overlay, drawn, OWN=own, SYMMETRIC=own, GRAY=not own) for own in (False, True)]
    print(len(sizes), "variants", file=sys.stderr)
    return 0 if all(sizes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
