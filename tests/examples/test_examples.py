"""Each example, run as its reader would run it, on small settings."""

import importlib.util
import re
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from PIL import Image

from torch_featviz.explain import attribute
from torch_featviz.zoo import card

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sheets(folder):
    """The names of all sheets in a folder, each a whole PNG that is not blank."""
    names = sorted(path.name for path in folder.glob("*.png"))
    for name in names:
        with Image.open(folder / name) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 60
            low, high = image.convert("L").getextrema()
            assert high - low > 100
    return names


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    monkeypatch.setattr("torch.hub.urlopen", fail)


def test_filters(tmp_path, capsys):
    assert load("filters").main(["--out", str(tmp_path)]) == 0
    assert len(sheets(tmp_path)) == 8
    said = capsys.readouterr().out
    assert "before the ReLU: (1, 4, 253, 253)" in said
    assert "after the ReLU and 2×2 max-pool: (1, 4, 126, 126)" in said


def test_filters_on_a_file_that_is_no_image(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("hello")
    assert load("filters").main(["--image", str(tmp_path / "notes.txt"), "--out", str(tmp_path)]) == 1
    assert "not an image that is read here" in capsys.readouterr().err


def test_xo(tmp_path, capsys):
    nets = ["xo", "xo_deep"]
    assert load("xo").main(["--out", str(tmp_path), "--epochs", "1", "--nets", *nets]) == 0
    assert len(sheets(tmp_path)) == 2 + (2 + 2 * 2) + (2 + 2 * 3)
    said = capsys.readouterr().out
    for name in nets:
        parameters = sum(p.numel() for p in card(name).build().parameters())
        assert re.search(rf"{name} +\d+\.\d % .* {parameters:,} ", said)


def test_watch(tmp_path, capsys):
    assert load("watch").main(["--out", str(tmp_path), "--steps", "9"]) == 0
    assert sheets(tmp_path) == ["maps.png", "report.png"]
    assert all((tmp_path / name).stat().st_size for name in ("kernels.webp", "maps.webp"))
    assert "History(3 samples, steps 0 to 8); 0 findings" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*/*/step-*.png"))) == 3 * (3 + 3)


def test_broken(tmp_path, capsys):
    assert load("broken").main(["--out", str(tmp_path), "--steps", "24"]) == 0
    assert sheets(tmp_path) == ["a-broken-image.png", "badly-begun.png", "healthy.png", "shut-off.png"]
    said = capsys.readouterr().out
    first = dict(re.findall(r"^(\w[\w ]+): [1-9]\d* found\n  step \d+, (\w+): ", said, re.M))
    assert first == {"badly begun": "vanishing", "shut off": "dead", "a broken image": "nonfinite"}
    assert "healthy: 0 found" in said
    assert "4.weight (16 of 16, and the layer returns nothing above 0)" in said


@pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval)")  # Lightning's, of torch and loaders
@pytest.mark.parametrize("package", ["lightning.pytorch", "transformers", "ignite"])
def test_trainers(package, tmp_path):
    pytest.importorskip(package)
    name = {"lightning.pytorch": "lightning_loop", "transformers": "hf_trainer", "ignite": "ignite_loop"}[package]
    assert load(name).main(["--out", str(tmp_path), "--steps", "9"]) == 0
    assert sheets(tmp_path) == ["report.png"]


def pictures(n):
    """Images that a net can tell apart by their brightness."""
    return [(torch.full((3, 32, 32), (i % 10) / 10) + 0.02 * torch.rand(3, 32, 32), i % 10) for i in range(n)]


@pytest.mark.parametrize("name", ["cifar_mlp", "cifar_cnn", "cifar_cnn_large"])
def test_cifar_nets(name, tmp_path):
    example = load("cifar")
    accuracy = example.run(card(name), pictures(40), pictures(20), tmp_path, epochs=1, batch=20)
    assert 0 <= accuracy <= 1
    assert len(sheets(tmp_path)) == (3 if name == "cifar_mlp" else 5)
    assert card(name).load(tmp_path / f"{name}.pt")
    assert not list(tmp_path.glob("*.part"))


def test_cifar_from_start_to_end(tmp_path, capsys, monkeypatch):
    example = load("cifar")
    monkeypatch.setattr(example, "cifar10", lambda *_args, train, **_kwargs: pictures(60 if train else 30))
    assert example.main(["--three", "--epochs", "1", "--out", str(tmp_path), "--limit", "50"]) == 0
    said = capsys.readouterr().out
    assert "cifar_cnn_3" in said
    assert "channels: mean [" in said
    assert "samples.png" in sheets(tmp_path)


@pytest.mark.parametrize("options", [[], ["--download"]])
def test_cifar_without_data_or_network(options, tmp_path, capsys, no_network):
    assert load("cifar").main(["--data", str(tmp_path), *options]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("cifar: no CIFAR10 in")
    assert "download=True" in said


def test_alexnet_from_local_weights(tmp_path, capsys):
    torch.manual_seed(0)
    for name, build in (("alexnet", torchvision.models.alexnet), ("vgg11", torchvision.models.vgg11)):
        torch.save(build().state_dict(), tmp_path / f"{name}.pth")
    arguments = ["--weights", str(tmp_path / "alexnet.pth"), "--vgg-weights", str(tmp_path / "vgg11.pth")]
    assert load("alexnet").main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert len(sheets(tmp_path / "out")) == 7
    assert len(re.findall(r"\d+\.\d% ", capsys.readouterr().out)) == 5


def test_alexnet_without_network(tmp_path, capsys, no_network, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert load("alexnet").main(["--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("alexnet: ")
    assert "no route to host" in said


@pytest.fixture
def small_weights(tmp_path):
    """Of a small net with a card, untrained."""
    torch.manual_seed(0)
    path = tmp_path / "cifar_cnn_large.pt"
    torch.save(card("cifar_cnn_large").build().state_dict(), path)
    return ["--model", "cifar_cnn_large", "--weights", str(path)]


def test_why(small_weights, tmp_path, capsys):
    assert load("why").main([*small_weights, "--out", str(tmp_path / "out")]) == 0
    assert sheets(tmp_path / "out") == ["units.png", "why.png"]
    assert "Look at the sheets in" in capsys.readouterr().out


@pytest.mark.slow
def test_atlas_of_real_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)  # where `python examples/atlas.py` finds its neighbour
    example = load("atlas")
    monkeypatch.setattr(example.fv, "atlas", partial(example.fv.atlas, megabytes=4))
    assert example.main(["--out", str(tmp_path / "page.html")]) == 0
    assert "page.html in a browser" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text("utf-8")
    assert '"name":"Egyptian cat"' in page
    assert len(page) < 4e6


def test_zfnet_over_a_folder_of_images(small_weights, tmp_path, capsys):
    for i in range(5):
        pixels = torch.randint(256, (30, 40, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    arguments = [*small_weights, "--data", str(tmp_path), "--channels", "2"]
    assert load("zfnet").main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert sheets(tmp_path / "out") == ["high.png", "low.png", "middle.png"]
    assert load("zfnet").main([*small_weights, "--data", str(tmp_path / "none")]) == 1
    assert "has no images" in capsys.readouterr().err


def test_real_weights_know_an_egyptian_cat():
    info = card("efficientnet_lite0")
    model, photo = info.load(), load("why").read_photo(None)
    with torch.no_grad():
        chances = model(info.preprocess(photo)).softmax(1)[0]
    assert info.classes[int(chances.argmax())] == "Egyptian cat"
    assert float(chances.max()) > 0.7
    found = attribute(model, info.preprocess(photo)).heatmaps[0]
    middle, border = found[40:184, 40:184].mean(), found.mean()
    assert middle > 1.2 * border  # the cat's face fills the middle


def test_pieces_of_photos():
    info = card("cifar_cnn_large")
    images = load("zfnet").pieces(info)
    assert len(images) > 50
    assert images[0].shape == info.input_size


def test_ranks(tmp_path, forks):
    said = forks.ranks(2, EXAMPLES / "ranks.py", "--steps", 5, "--out", tmp_path)
    assert "those of 16 drawings" in said
    assert sheets(tmp_path) == ["report.png"]
    assert len((tmp_path / "figures" / "samples.jsonl").read_text().splitlines()) == 2
