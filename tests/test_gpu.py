"""What is right on a CPU is right on a GPU: each test runs on both, where there is one (`pytest -m gpu`)."""

import copy

import pytest
import torch
import torchvision
from torch import nn

import torch_featviz as fv
from torch_featviz import cli
from torch_featviz.bench import launches, overhead
from torch_featviz.capture.reduce import Several
from torch_featviz.errors import DeviceError
from torch_featviz.training import Monitor
from torch_featviz.zoo import card, fit

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])])
def device(request):
    """Where tests run; TF32 is off, so that both compute the same."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device(request.param)
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def no_waits(device):
    """A block in which whatever waits for the device raises."""

    class Block:
        def __enter__(self):
            if device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")

    return Block()


def network():
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval()


def outputs_of(net, call, kinds):
    """A clone of what each layer of these kinds returned, by name."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.setdefault(name, []).append(output.clone()))
        for name, module in net.named_modules()
        if isinstance(module, kinds)
    ]
    call()
    for hook in hooks:
        hook.remove()
    return seen


def fed(into, outputs):
    """A fresh reducer that has seen `outputs`."""
    reducer = into.fresh()
    for output in outputs:
        reducer.update(output)
    return reducer


def agree(got, expected, rtol=0.0, atol=0.0):
    """Raise unless all figures are equal."""
    for name in [name for name, kind in vars(type(got)).items() if isinstance(kind, property) and name != "settings"]:
        found, wanted = (torch.as_tensor(getattr(each, name)) for each in (got, expected))
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_captured_values_are_what_layers_returned(device, no_waits, mode):
    net, x = network().to(device), torch.randn(2, 3, 32, 32, device=device)
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Linear)
    with mode():
        seen = outputs_of(net, lambda: net(x), kinds)
        with fv.capture(net, kinds) as acts:
            net(x)
            with no_waits:
                net(x)
        for name, several in seen.items():
            for i, output in enumerate(several):
                found = acts[name if len(several) == 1 else f"{name}#{i + 1}"]
                assert found.device.type == device.type
                torch.testing.assert_close(found, output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_figures_are_those_of_the_outputs(device, no_waits, layout, dtype):
    if device.type == "cpu" and dtype != torch.float32:
        pytest.skip("what a CPU makes of other dtypes is held elsewhere")
    net = network().to(device=device, dtype=dtype, memory_format=layout)
    x = torch.randn(2, 3, 32, 32).to(device=device, dtype=dtype, memory_format=layout)
    into = [fv.Moments(), fv.Histogram(), fv.TopK(3)]
    with torch.no_grad():
        seen = outputs_of(net, lambda: [net(x), net(x), net(x)], (nn.Conv2d, nn.Linear))
        with fv.capture(net, [nn.Conv2d, nn.Linear], into=into) as stats:
            net(x)
            net(x)
            if device.type == "cuda":  # on a CPU they look at values, which costs nothing
                with no_waits:
                    net(x)
            else:
                net(x)
    for name, outputs in seen.items():
        expected = fed(Several(*into), [output.cpu() for output in outputs])
        rough = {torch.float16: 1e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-4)  # two forwards of a GPU may differ
        for got, wanted in zip(stats[name], expected, strict=True):
            if isinstance(got, fv.Moments):
                torch.testing.assert_close(got.mean, wanted.mean, rtol=rough, atol=rough)
                torch.testing.assert_close(got.std, wanted.std, rtol=rough, atol=rough)
                assert torch.equal(got.count, wanted.count)
            elif isinstance(got, fv.TopK):
                torch.testing.assert_close(got.values, wanted.values, rtol=rough, atol=rough)
            else:
                assert got.counts.sum() == wanted.counts.sum()


def test_figures_of_the_same_tensors_to_the_bit(device):
    class Given(nn.Module):
        def forward(self, x):
            return x

    torch.manual_seed(0)
    values = [torch.randn(9, 70, 19, 23) * 3 + 5 for _ in range(2)]
    values[0][0, :2], values[1][3, 4] = torch.nan, torch.inf
    into = Several(fv.Moments(), fv.Histogram(), fv.TopK(5))
    net = nn.Sequential(Given())
    net.register_buffer("somewhere", torch.zeros(1))
    net.register_parameter("there", nn.Parameter(torch.zeros(1)))
    net.to(device)
    with fv.capture(net, "0", into=list(into)) as stats:
        for value in values:
            net(value.to(device))
    moments, histogram, top = stats["0"]
    expected = fed(into, values)
    agree(histogram, expected[1])
    agree(top, expected[2])
    agree(moments, expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled(device):
    torch._dynamo.reset()
    net, x = card("cifar_cnn").build().eval().to(device), torch.randn(4, 3, 32, 32, device=device)
    fast = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        with fv.capture(net, nn.Conv2d, into=fv.Moments()) as expected:
            net(x)
        with fv.capture(fast, nn.Conv2d, into=fv.Moments()) as stats:
            fast(x)
    for name, figures in expected.items():
        torch.testing.assert_close(stats[name].mean, figures.mean, rtol=1e-4, atol=1e-5)


def test_launches(device):
    net, x = network().to(device), torch.randn(1, 3, 32, 32, device=device)
    with torch.no_grad():
        found = launches(net, x, [nn.Conv2d, nn.Linear], into=[fv.Moments(), fv.Histogram(), fv.TopK()])
    assert found.added <= 8
    assert found.waits == 0


def test_overlay(device):
    torch.manual_seed(0)
    images, heatmaps = torch.rand(2, 3, 40, 50), torch.randn(2, 3, 40, 50)
    heatmaps[0, 0, 0, 0], images[1, 0, 3, 3] = torch.nan, 0.5
    scale = fv.Scale(symmetric=True, vmax=1.5)
    expected = fv.overlay(images, heatmaps, scale=scale).int()
    made = fv.overlay(images.to(device), heatmaps.to(device), scale=scale)
    assert made.device.type == device.type
    assert (made.cpu().int() - expected).abs().max() <= 1


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "input_x_gradient", "guided_backprop"])
def test_attributions(device, method):
    net, x = network(), torch.rand(2, 3, 32, 32)
    expected = fv.attribute(net, x, target=3, method=method).heatmaps
    found = fv.attribute(copy.deepcopy(net).to(device), x.to(device), target=3, method=method).heatmaps
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_deconvnet_and_top_patches(device):
    net, x = card("cifar_cnn").build().eval(), torch.rand(4, 3, 32, 32)
    layer = next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    moved = copy.deepcopy(net).to(device)
    expected = fv.deconvnet(net, x[:1], layer, units=[(0, 3, 3)])
    found = fv.deconvnet(moved, x[:1].to(device), layer, units=[(0, 3, 3)])
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)
    batches = [x[:2], x[2:]]
    here, there = (fv.top_patches(each, batches, layer, k=2) for each in (net, moved))
    assert torch.equal(here.images, there.images)


def monitored(net, x, y, no_waits):
    """The history of three steps, of which the last waits for nothing."""
    optimizer, watch = torch.optim.SGD(net.parameters(), 0.01), Monitor(net, every=1)

    def step():
        with watch.step():
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    step()
    step()
    with no_waits:
        step()
    return watch.history


def test_monitor(device, no_waits):
    torch.manual_seed(0)
    net = card("cifar_cnn").build().train()
    x, y = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    history = [monitored(copy.deepcopy(net).to(where), x.to(where), y.to(where), no_waits) for where in ("cpu", device)]
    assert [len(each) for each in history] == [3, 3]
    for expected, found in zip(*history, strict=True):
        for name, figures in expected.layers.items():
            assert found.layers[name].mean == pytest.approx(figures.mean, rel=1e-3, abs=1e-4)
            assert found.layers[name].std == pytest.approx(figures.std, rel=1e-3, abs=1e-4)
            assert sum(found.layers[name].histogram.counts) == sum(figures.histogram.counts)
        for name, figures in expected.parameters.items():
            other = found.parameters[name]
            assert other.norm == pytest.approx(figures.norm, rel=1e-4)
            assert other.grad_norm == pytest.approx(figures.grad_norm, rel=1e-2, abs=1e-5)
            assert other.update_ratio == pytest.approx(figures.update_ratio, rel=1e-2, abs=1e-6)
            assert (other.outputs, other.unreached) == (figures.outputs, figures.unreached)


def trained(device, broken):
    """What a Monitor tells of a small network that is broken in one way."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 4))
    images, labels = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
    if broken == "bytes":
        images = (40 * images + 120).clamp(0, 255).round()
    if broken == "frozen at random":
        net[:4].requires_grad_(False)
    if broken == "dead":
        nn.init.constant_(net[3].bias, -100.0)
    net.to(device)
    images, labels = images.to(device), labels.to(device)
    held = net[5].parameters() if broken == "in no optimizer" else net.parameters()
    optimizer, watch = torch.optim.SGD(held, 0.05), Monitor(net, every=5)
    for i in range(20):
        with watch.step() as step:
            scores = net(images + float("nan") if broken == "nan" and i == 13 else images)
            scores = scores.softmax(1) if broken == "softmax twice" else scores
            loss = nn.functional.cross_entropy(scores, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step.log(loss=loss)
    return [(each.step, each.kind, each.names) for each in watch.findings]


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        ("", None),
        ("bytes", "inputs"),
        ("frozen at random", "untrained"),
        ("in no optimizer", "untrained"),
        ("dead", "dead"),
        ("nan", "nonfinite"),
        ("softmax twice", "loss"),
    ],
)
@pytest.mark.filterwarnings("ignore::torch_featviz.errors.FindingWarning")
def test_findings(device, broken, kind):
    found = trained(device, broken)
    assert {each[1] for each in found} == ({kind} if kind else set())
    assert found == trained("cpu", broken)


def test_fit(device):
    net = card("cifar_cnn").build()
    x, y = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 4)
    curves = fit(net, loader, loader, epochs=2, device=device, progress=False)
    assert len(curves.train_loss) == 2
    assert all(parameter.device.type == device.type for parameter in net.parameters())


@pytest.mark.gpu
@no_gpu
def test_the_demo_runs_on_the_gpu_by_itself(tmp_path, capsys):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    assert cli.main(["demo", "--out", str(tmp_path), "--epochs", "1"]) == 0
    assert torch.cuda.max_memory_allocated() > before + 2**20
    assert "on cuda" in capsys.readouterr().err
    assert (tmp_path / "atlas.html").is_file()


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("command", ["kernels", "maps", "overview", "why", "units", "atlas"])
def test_commands_run_on_the_gpu_by_themselves(tmp_path, capsys, command):
    picture, out = tmp_path / "one.png", tmp_path / ("out.html" if command == "atlas" else "out.png")
    fv.kernels(torch.randn(4, 1, 58, 58)).save(picture)
    given = {"kernels": [], "units": ["--data", str(tmp_path)]}.get(command, ["--image", str(picture)])
    assert cli.main([command, "xo", "--random", *given, "--out", str(out)]) == 0
    assert "computed on cuda" in capsys.readouterr().err


def test_views(device):
    maps = torch.randn(12, 9, 9, generator=torch.Generator().manual_seed(0))
    assert fv.feature_maps(maps.to(device)).png() == fv.feature_maps(maps).png()
    assert fv.feature_maps(maps.to(device), reduce="rms").png() == fv.feature_maps(maps, reduce="rms").png()
    net = card("cifar_cnn").build()
    layer = next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    x = torch.rand(2, 3, 32, 32)
    there = fv.tokens(copy.deepcopy(net).to(device), x.to(device), layer).cells
    assert (there.int() - fv.tokens(net, x, layer).cells.int()).abs().max() <= 8
    assert fv.kernels(copy.deepcopy(net).to(device), layer).png() == fv.kernels(net, layer).png()


@pytest.mark.gpu
@no_gpu
def test_what_a_person_gives_is_not_moved():
    net = card("cifar_cnn").build().cuda().eval()
    layer = next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    x = torch.rand(2, 3, 32, 32)
    for call in (
        lambda: fv.attribute(net, x),
        lambda: fv.deconvnet(net, x[:1], layer, units=[(0, 3, 3)]),
        lambda: fv.overview(net, x[:1]),
        lambda: fv.tokens(net, x, layer),
        lambda: fv.atlas(net, x),
        lambda: fv.summary(net, x),
        lambda: fv.first_nonfinite(net, x),
        lambda: Monitor(net, probe=x),
        lambda: overhead(net, x),
    ):
        with pytest.raises(DeviceError, match=r"the inputs are on cpu and the weights of .* on cuda:0"):
            call()
