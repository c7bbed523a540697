import matplotlib
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_featviz.capture import capture
from torch_featviz.errors import LayerError, ShapeError
from torch_featviz.views import overview


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    )


X = torch.rand(1, 1, 8, 8)


def test_each_cell_is_the_mean_over_channels_on_its_own_symmetric_scale():
    model = net().eval()
    sheet = overview(model, X)
    with torch.no_grad(), capture(model) as acts:
        model(X)
    table = torch.from_numpy(matplotlib.colormaps["RdBu_r"].resampled(255)(range(255), bytes=True)[:, :3])
    for cell, name in zip(sheet.cells, "0123", strict=True):
        mean = acts[name][0].mean(0)
        index = ((mean / mean.abs().max() + 1) / 2 * 254).round().long()
        factor = 6 // len(mean)
        big = index.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        assert torch.equal(cell, table[big].permute(2, 0, 1))


def test_labels_and_legend_say_what_is_shown_and_what_is_not():
    sheet = overview(net(), X)
    assert [label.split("  ")[:2] for label in sheet.labels] == [["0", "6×6"], ["1", "6×6"], ["2", "6×6"], ["3", "3×3"]]
    assert all(label.split("  ")[2].startswith("±") for label in sheet.labels)
    assert "each map on its own scale" in sheet.legend.lines()[0]
    assert "without maps: 5" in sheet.legend.lines()
    assert "only pass values on: 4" in sheet.legend.lines()
    assert sheet.title == "Sequential, layer by layer: mean over channels"


def test_the_model_stays_as_it_was():
    model = net()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model[1].eval()
    overview(model, X)
    assert model.training
    assert not model[1].training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_maps_that_are_not_finite_are_counted():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Identity())
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, 0] = float("nan")
    assert overview(model, x, ["0"]).legend.counts.nan == 1


def test_layers_that_did_not_run_are_named():
    class First(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    assert any(line.startswith("not run: 1, 2, 3") for line in overview(First(*net()), X).legend.lines())


@pytest.mark.parametrize(
    ("images", "layers", "error", "match"),
    [
        (torch.rand(2, 1, 8, 8), None, ShapeError, r"one image '1 c h w', got shape \(2, 1, 8, 8\); take images\[:1\]"),
        (torch.rand(1, 8, 8), None, ShapeError, "one image '1 c h w'"),
        (X, ["4"], LayerError, "none of '4' returned maps"),
        (X, ["44"], LayerError, "no layer '44' in Sequential"),
    ],
)
def test_bad_input(images, layers, error, match):
    with pytest.raises(error, match=match):
        overview(net(), images, layers)


class Attentive(nn.Module):
    """Maps by functions, and a matrix of tokens by tokens, which has four axes and is no map."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.conv(x))
        tokens = x.flatten(2)[:, None]
        scores = (tokens.transpose(2, 3) @ tokens).softmax(3)
        return (scores @ tokens.transpose(2, 3)).mean((1, 2))


def test_functional_calls_have_cells_if_they_are_maps():
    sheet = overview(Attentive(), X)
    assert [label.split("  ")[0] for label in sheet.labels] == ["conv", "conv.relu"]
    assert any(line.startswith("without maps: conv.matmul#1, conv.softmax") for line in sheet.legend.lines())
