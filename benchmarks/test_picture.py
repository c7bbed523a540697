"""Drawing 256 feature maps of 27 x 27, against what is usually done; budgets are ratios within one run.

pytest benchmarks/test_picture.py --benchmark-enable
"""

import io

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from torch_featviz.bench import paired, settled
from torch_featviz.picture import Scale, Sheet, paint, tile

# How many times faster than the usual way, at least.
BUDGET = {"axes to png": 50.0, "make_grid": 5.0}


@pytest.fixture
def maps():
    """Smooth, as feature maps are; on noise a PNG of any kind takes longer."""
    noise = torch.randn(256, 1, 27, 27, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2)


def to_png(maps):
    cells, legend = paint(maps, Scale(symmetric=True))
    return Sheet(cells, legend, title="256 maps", labels=tuple(str(i) for i in range(len(maps)))).png()


def axes_to_png(maps):
    figure = Figure(figsize=(10, 13))
    FigureCanvasAgg(figure)
    for i, one in enumerate(maps.numpy()):
        axes = figure.add_subplot(16, 16, i + 1)
        axes.imshow(one[0], cmap="RdBu_r", interpolation="nearest")
        axes.set_title(str(i), fontsize=8)
        axes.axis("off")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def test_png_of_256_maps(benchmark, maps):
    assert len(benchmark(to_png, maps)) > 10_000
    ratio = settled(
        lambda: paired(lambda: axes_to_png(maps), lambda: to_png(maps), rounds=5),
        lambda ratio: ratio.median >= BUDGET["axes to png"],
    )
    benchmark.extra_info["times faster than 256 axes"] = str(ratio)
    print(f"\nPNG of 256 maps: {ratio} times faster than 256 axes")
    assert ratio.median >= BUDGET["axes to png"], str(ratio)


def test_scale_and_tile(benchmark, maps):
    scale = Scale(per="kernel")
    assert benchmark(lambda: tile(scale(maps), ncols=16)).shape == (1, 447, 447)
    ratio = settled(
        lambda: paired(
            lambda: make_grid(maps, nrow=16, normalize=True, scale_each=True),
            lambda: tile(scale(maps), ncols=16),
            rounds=101,
        ),
        lambda ratio: ratio.median >= BUDGET["make_grid"],
    )
    benchmark.extra_info["times faster than make_grid"] = str(ratio)
    print(f"\nscale and tile: {ratio} times faster than make_grid")
    assert ratio.median >= BUDGET["make_grid"], str(ratio)
