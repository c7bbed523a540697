"""Every function of PyTorch that is pointwise, as numbers show, is followed as such."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_featviz.inspect.receptive import Tracer
from torch_featviz.inspect.receptive.reach import EXACT
from torch_featviz.model.layout import LayoutTracer

SHAPE = (2, 3, 4, 5)
TWO = ("add", "sub", "mul", "div", "floor_divide", "remainder", "fmod", "maximum", "minimum", "atan2", "hypot")
ROW = torch.linspace(0.1, 0.9, 5)
IN_PLACE = "Dropout3d in place"  # adds an axis to its input in place, and takes it away again


def functions():
    """By name, of one tensor: those of torch.nn, torch.nn.functional and torch.special."""
    found = {}
    for space in (F, torch.special):
        found |= {name: getattr(space, name) for name in dir(space) if callable(getattr(space, name))}
    for name in dir(nn):
        for words, options in (("", {}), (" in place", {"inplace": True})):
            try:
                found[f"{name}{words}"] = getattr(nn, name)(**options).eval()
            except Exception:  # it takes other arguments
                continue
    found |= {f"{name} of {other}": partial(getattr(torch, name), other=other) for name in TWO for other in (0.5, ROW)}
    return {name: function for name, function in found.items() if not name.startswith("_") and name != IN_PLACE}


def same_places(function):
    """Whether each entry of what it returns depends on the entry in its place, and on no other."""
    x = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    found = function(x.clone())
    if not isinstance(found, Tensor) or found.shape != x.shape or not torch.equal(found, function(x.clone())):
        return False
    for at in ((0, 1, 2, 3), (1, 2, 0, 4)):
        other = x.clone()
        other[at] = 0.97
        moved = function(other) != found
        moved[at] = False
        if moved.any():
            return False
    return True


def followed(function):
    x = torch.rand(SHAPE) * 0.8 + 0.1
    layouts, fields = LayoutTracer(x), Tracer(x)
    with layouts:
        output = function(x.clone())
    layout = layouts.layout(output)
    with fields:
        output = function(x.clone())
    trace = fields.read(output)
    exact = trace.level == EXACT and [axis.table.shape[0] for axis in trace.axes] == [4, 5]
    return layout is not None and layout.places == (2, 3) and layout.channels == 1 and exact


@pytest.mark.filterwarnings("ignore")
def test_all_pointwise_functions_keep_places_and_channels():
    tried, lost = 0, []
    with torch.no_grad():
        for name, function in functions().items():
            try:
                pointwise = same_places(function)
            except Exception:  # it takes no such tensor
                continue
            if pointwise:
                tried += 1
                lost += [] if followed(function) else [name]
    assert tried > 80
    assert not lost


@pytest.mark.parametrize(
    "function", [partial(F.dropout, p=0.5), F.rrelu, nn.Dropout2d(0.5)], ids=["dropout", "rrelu", "channels"]
)
def test_so_do_those_that_draw_lots(function):
    assert followed(function)
