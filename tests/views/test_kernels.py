import pytest
import torch
from torch import nn

from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.picture import Scale
from torch_featviz.views import kernels


@pytest.fixture
def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 5), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 20, 3)), nn.Flatten(), nn.Linear(4, 2)
    )


def test_colour_kernels_share_one_symmetric_scale_and_mid_grey_is_zero(net):
    with torch.no_grad():
        net[0].weight[2] = 0
    sheet = kernels(net, "0")
    reach = net[0].weight.abs().max().item()
    assert (sheet.legend.scale.vmin, sheet.legend.scale.vmax) == (-reach, reach)
    assert (sheet.cells[2] == 128).all()
    assert sheet.labels == tuple("01234567")
    assert "red, green and blue each on this scale, mid-grey is 0" in sheet.legend.lines()
    assert sheet.title == "Kernels of 0: 8 filters of 3×5×5"


def test_deep_kernels_are_a_table_of_out_by_in(net):
    sheet = kernels(net, "2.0")
    assert len(sheet.cells) == 16 * 8
    assert sheet.rows[0] == "out 0"
    assert sheet.columns == tuple("01234567")
    assert "16 of 20 filters × 8 of 8 channels shown" in sheet.legend.notes
    weight, scale = net[2][0].weight.detach(), sheet.legend.scale
    assert scale.vmax == weight.abs().max().item(), "also of what is not shown"
    from torch_featviz.picture import colorize

    assert sheet.cells[3 * 8 + 5].equal(colorize(scale(weight[3, 5])[None, None], "RdBu_r")[0])


def test_all_is_shown_without_a_note_where_it_fits():
    assert kernels(torch.randn(4, 5, 3, 3)).legend.notes == ()


@pytest.mark.parametrize("per", ["kernel", "filter"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_scale_per_kernel_or_filter(per, channels):
    weight = torch.randn(20, channels, 3, 3)
    sheet = kernels(weight, scale=Scale(symmetric=True, per=per), limit=4)
    assert sheet.legend.marks() == []
    axes = (2, 3) if per == "kernel" else (1, 2, 3)
    reach = weight.abs().amax(axes, keepdim=True)
    if channels == 5:
        reach = reach.expand(20, 5, 1, 1)[:4, :4].reshape(16, 1, 1, 1)
    assert sheet.legend.scale.vmax.equal(reach)
    assert sheet.png()


def test_a_module_alone_one_channel_depthwise_and_one_dimension():
    assert kernels(nn.Conv2d(1, 9, 3)).legend.cmap == "RdBu_r"
    assert len(kernels(nn.Conv2d(12, 12, 3, groups=12)).cells) == 12
    assert kernels(nn.Conv1d(1, 6, 9)).cells.shape == (6, 3, 1, 9)
    assert kernels(nn.Conv1d(2, 6, 9)).title == "Kernels: 6 filters of 2×1×9"
    assert "in 2 groups" in kernels(nn.Conv2d(8, 8, 3, groups=2)).legend.notes[0]


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_are_shown_filter_by_filter(groups):
    conv = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    sheet = kernels(conv)
    out, within = 6, 4 // groups
    assert sheet.title.startswith(f"Kernels: {out} filters of {within}×")
    x = torch.zeros(1, 4, 1, 1)
    x[0, 3] = 1  # the last input channel, alone, paints its kernels into its group's outputs
    painted = conv(x)[0].detach()
    last = within - 1
    from torch_featviz.picture import colorize

    expected = colorize(sheet.legend.scale(painted[-1])[None, None], "RdBu_r")[0]
    assert sheet.cells[(out - 1) * within + last].equal(expected)


def test_the_model_is_as_it_was(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    kernels(net, "0").png()
    assert all(v.equal(before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    "weight", [torch.full((2, 1, 3, 3), float("nan")), torch.zeros(2, 3, 3, 3), torch.ones(2, 5, 1, 1)]
)
def test_odd_weights_are_drawn(weight):
    sheet = kernels(weight)
    assert sheet.legend.counts.nan == weight.isnan().sum()
    assert sheet.png()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda n: kernels(n, "2.1"), LayerError, "no layer '2.1' in Sequential; close: '2.0'"),
        (lambda n: kernels(n, "xyz"), LayerError, r"no layer 'xyz' in Sequential; it has 0, 1, 2, 2.0, 3, 4"),
        (
            lambda n: kernels(n, "4"),
            LayerError,
            "layer '4' is a Linear and has no kernels; these have: '0', '2.0'",
        ),
        (
            lambda n: kernels(n),
            LayerError,
            "this module is a Sequential and has no kernels; these have: '0', '2.0'",
        ),
        (lambda n: kernels(nn.Linear(2, 2)), LayerError, "Linear has no convolution"),
        (
            lambda n: kernels(nn.Conv3d(1, 2, 3)),
            LayerError,
            r"is a Conv3d: draw one slice, kernels\(weight\[:, :, 0\]\)",
        ),
        (
            lambda n: kernels(nn.LazyConv2d(2, 3)),
            LayerError,
            "is lazy and has no weights yet; run the model once",
        ),
        (lambda n: kernels("x"), LayerError, "need a model, a layer or a weight tensor, got str"),
        (lambda n: kernels(torch.ones(3, 3)), ShapeError, r"'k c h w' and not empty, got shape \(3, 3\)"),
        (lambda n: kernels(torch.ones(0, 1, 3, 3)), ShapeError, r"got shape \(0, 1, 3, 3\)"),
        (lambda n: kernels(n, "0", limit=0), OptionError, "limit must be at least 1, got 0"),
    ],
)
def test_bad_input_says_what_to_do(net, call, error, match):
    with pytest.raises(error, match=match):
        call(net)


def test_many_convolutions_are_not_all_listed():
    with pytest.raises(LayerError, match="'7' and 4 more"):
        kernels(nn.Sequential(*[nn.Conv2d(1, 1, 1) for _ in range(12)]))


def test_a_glob_for_several_layers_is_refused():
    with pytest.raises(LayerError, match="'\\*' stands for 2 layers, '0', '1'; draw one at a time"):
        kernels(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)), "*")


def test_grey_kernels_are_a_table_of_planes_from_black_to_white():
    weight = torch.tensor([[-2.0, 0.0, 2.0], [1.0, -1.0, 0.5]])[:, :, None, None]
    sheet = kernels(weight, cmap="gray")
    assert sheet.cells[:, 0].flatten().tolist() == [0, 128, 255, 191, 64, 159]
    assert sheet.ncols == 3
    assert sheet.legend.cmap == "gray"
    with pytest.raises(OptionError, match="no colour map 'jet' here: its colours are not ordered by lightness"):
        kernels(weight, cmap="jet")
