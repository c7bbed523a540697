import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.errors import LayerError, OptionError, ShapeError
from torch_featviz.picture import Scale, Stack, colorize
from torch_featviz.views import kernels
from torch_featviz.zoo import FilterBank


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
    expected = colorize(sheet.legend.scale(painted[-1])[None, None], "RdBu_r")[0]
    assert sheet.cells[(out - 1) * within + last].equal(expected)


@given(
    filters=st.integers(1, 12),
    size=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    ncols=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_each_weight_is_written_in_its_cell(filters, size, ncols, seed):
    weight = torch.randn(filters, 1, *size, generator=torch.Generator().manual_seed(seed))
    picture = kernels(weight, values=True, decimals=3, ncols=ncols)
    bands = picture.parts if isinstance(picture, Stack) else (picture,)
    reach = weight.abs().max()
    for i in range(filters):
        band, place = bands[i // ncols], i % ncols
        for y in range(size[0]):
            for x in range(size[1]):
                cell = y * band.ncols + place * size[1] + x
                value = weight[i, 0, y, x]
                assert band.inside[cell] == f"{value:.3f}".replace("-", "−")
                expected = colorize((value / reach / 2 + 0.5).reshape(1, 1, 1, 1), "RdBu_r")
                assert (band.cells[cell].int() - expected[0].int()).abs().max() <= 3
    assert [name for band in bands for name in band.heads] == [str(i) for i in range(filters) if filters > 1]
    assert picture.png()


def test_weights_of_colour_planes_and_deeper_filters():
    weight = torch.randn(4, 3, 2, 2)
    sheet = kernels(weight, values=True, decimals=1)
    assert sheet.inside[2] == "\n".join(f"{value:.1f}".replace("-", "−") for value in weight[1, :, 0, 0])
    by_plane = kernels(weight, values=True, planes=True, decimals=1)
    assert [part.heads for part in by_plane.parts][1] == ("filter 1, red", "filter 1, green", "filter 1, blue")
    assert by_plane.parts[1].inside[2] == f"{weight[1, 1, 0, 0]:.1f}".replace("-", "−")
    deep = torch.randn(20, 5, 2, 2)
    parts = kernels(deep, values=True, decimals=1).parts
    assert len(parts) == 16
    assert parts[3].heads == tuple(f"out 3 in {i}" for i in range(5))
    assert parts[3].inside[2 * 4] == f"{deep[3, 4, 0, 0]:.1f}".replace("-", "−")
    assert "80 of 100 kernels shown" in kernels(deep, values=True).legend.notes


@pytest.mark.parametrize(
    ("weight", "word"),
    [
        (torch.ones(1, 1, 1, 1), "1"),
        (torch.full((1, 1, 1, 1), 0.25), "0.25"),
        (torch.full((1, 1, 1, 1), 0.0123), "0.012"),
    ],
)
def test_as_many_digits_as_show_something(weight, word):
    assert kernels(weight, values=True).inside == (word,)


def test_the_one_convolution_of_a_model_needs_no_name():
    bank = FilterBank()
    sheet = kernels(bank, values=True)
    assert sheet.heads == ("0", "1", "2", "3")
    assert sheet.inside[:5] == ("−1", "−1", "1", "1", "1")
    net = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(1, 2, 3)), nn.Linear(2, 2))
    assert kernels(net).png() == kernels(net[1][0]).png()


def test_planes_are_named_by_filter_and_colour():
    weight = torch.randn(5, 3, 4, 4)
    sheet = kernels(weight, planes=True, ncols=2)
    assert sheet.columns == ("red", "green", "blue")
    assert sheet.labels[:6] == ("filter 0", "", "", "filter 1", "", "")
    assert (sheet.ncols, sheet.group) == (6, 3)
    scale = Scale(symmetric=True).fit(weight)
    for i in range(5):
        for plane in range(3):
            assert sheet.cells[3 * i + plane].equal(colorize(scale(weight[i, plane])[None, None], "RdBu_r")[0])
    per = kernels(weight, planes=True, scale=Scale(symmetric=True, per="filter"))
    assert per.legend.scale.vmax[3].item() == weight[1].abs().max().item()
    with pytest.raises(OptionError, match="planes= needs filters with three input channels, these are 5×3×3"):
        kernels(torch.ones(2, 5, 3, 3), planes=True)
    with pytest.raises(OptionError, match="these are 3×3×3 in 4 groups; leave it out"):
        kernels(nn.Conv2d(12, 8, 3, groups=4), planes=True)


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(6, 6, 6), (6, 12, 6), (6, 6, 2), (12, 8, 4), (80, 80, 80)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_grouped_convolution_says_what_its_filters_read(inputs, outputs, groups, transposed):
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(inputs, outputs, 2, groups=groups, bias=False)
    sheet = kernels(conv)
    for out in (0, outputs // 2, outputs - 1):
        reads = []
        for channel in range(inputs):
            x = torch.zeros(1, inputs, 3, 3)
            x[0, channel] = 1
            reads += [channel] if conv(x)[0, out].abs().sum() > 0 else []
        low, high = reads[0], reads[-1]
        words = f"out {out} reads in {low}" + (f"–{high}" if high > low else "")
        if outputs > 64:
            assert sheet.labels[out] == f"{out} in {low}"
        else:
            assert (sheet.labels if high == low else sheet.rows)[out] == words


def test_dilation_is_told():
    assert kernels(nn.Conv2d(1, 2, 3)).legend.notes == ()
    assert kernels(nn.Conv2d(1, 2, 3, dilation=2)).legend.notes == (
        "dilation 2: neighbours in a kernel read inputs 2 apart",
    )
    assert "dilation 3×1: " in kernels(nn.Conv2d(1, 2, 3, dilation=(3, 1))).legend.notes[0]
    assert "dilation 4: " in kernels(nn.Conv1d(1, 2, 3, dilation=4)).legend.notes[0]


@pytest.mark.parametrize("options", [{}, {"values": True}, {"planes": True}])
@pytest.mark.parametrize(
    "shape",
    [
        (2048, 1, 3, 3),
        (2048, 3, 7, 7),
        (513, 1, 1, 400),
        (2048, 2048, 1, 1),
        (600, 1, 31, 31),
        (20, 40, 1, 300),
        (3, 20, 64, 64),
    ],
)
def test_no_sheet_is_larger_than_a_screen_can_take(shape, options):
    if (options.get("planes") and shape[1] != 3) or (options.get("values") and max(shape) > 64 and shape[3] > 64):
        pytest.skip("refused")
    groups = {"groups": 2048} if shape[:2] == (2048, 1) else {}
    source = nn.Conv2d(2048, 2048, 3, **groups) if groups else torch.rand(1).expand(shape)
    sheet = kernels(source, **options)
    height, width, _ = sheet.numpy().shape
    assert max(height, width) <= 4000
    fits = shape[0] * shape[1] <= 1024 and not options
    whole = shape in ((2048, 1, 3, 3), (2048, 3, 7, 7), (600, 1, 31, 31))
    assert fits or whole or any("shown" in note for note in sheet.legend.notes)


def test_columns_of_ones_choice():
    assert kernels(torch.randn(9, 1, 3, 3), ncols=9).pixels.shape == (3, 3, 35)
    assert kernels(torch.randn(9, 3, 3, 3), ncols=3).pixels.shape == (3, 11, 11)


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
        (lambda n: kernels(n, "0", ncols=0), OptionError, "ncols must be at least 1, got 0"),
        (lambda n: kernels(n, "0", values=True, decimals=-1), OptionError, "decimals must be at least 0, got -1"),
        (lambda n: kernels(torch.ones(1, 1, 65, 3), values=True), ShapeError, "at most 64 × 64 values can be read"),
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
    with pytest.raises(LayerError, match="'\\*' matches 2 layers, '0', '1'; choose one"):
        kernels(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)), "*")


def test_grey_kernels_are_a_table_of_planes_from_black_to_white():
    weight = torch.tensor([[-2.0, 0.0, 2.0], [1.0, -1.0, 0.5]])[:, :, None, None]
    sheet = kernels(weight, cmap="gray")
    assert sheet.cells[:, 0].flatten().tolist() == [0, 128, 255, 191, 64, 159]
    assert sheet.ncols == 3
    assert sheet.legend.cmap == "gray"
    with pytest.raises(OptionError, match="no colour map 'jet' here: its colours are not ordered by lightness"):
        kernels(weight, cmap="jet")
