"""The command, as a person types it."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from torch_featviz import cli, demo, training
from torch_featviz.zoo import card, train_xo
from torch_featviz.zoo.fit import History


@pytest.fixture
def drawing(tmp_path):
    path = tmp_path / "drawing.png"
    Image.new("L", (130, 120), 200).save(path)
    return path


@pytest.fixture
def quick(monkeypatch):
    """The demo's training, cut short."""
    calls = []

    def train(seed, watch, **options):
        calls.append(seed)
        torch.manual_seed(seed)
        net = card("xo_deep").build()
        with watch(net)():
            net(torch.randn(2, 1, 116, 116)).square().mean().backward()
        return net.eval(), History((0.7,), (0.5,), (0.7,), (0.5,), (0.1,)), None

    monkeypatch.setattr(demo, "train_xo", train)
    return calls


def size(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def test_demo_writes_every_sheet_and_keeps_the_network(quick, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 0
    sheets = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert [name[0] for name in sheets] == [*"11", *"12345556667789"]
    assert all(min(size(tmp_path / "out" / name)) > 100 for name in sheets)
    with Image.open(tmp_path / "out" / "10-kernels-conv1.webp") as film:
        assert film.n_frames == 1
    assert training.History.load(tmp_path / "out" / "seed0" / "training").steps == [0]
    said = capsys.readouterr().out
    assert "Held-out accuracy:" in said
    assert "import torch, torch_featviz as fv" in said
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 0
    assert quick == [0]
    assert "Loaded the network that an earlier run trained" in capsys.readouterr().out
    for again in (["--retrain"], ["--seed", "3"], ["--epochs", "1"]):
        assert cli.main(["demo", "--out", str(tmp_path / "out"), *again]) == 0
    assert quick == [0, 0, 3, 0]


def test_the_three_lines_work(quick, tmp_path, capsys, monkeypatch):
    assert cli.main(["demo", "--out", str(tmp_path / "out"), "--seed", "2"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), {})
    assert size(tmp_path / "kernels.png")


def test_real_training_leaves_the_generator_alone_and_repeats():
    before = torch.get_rng_state()
    nets = [train_xo(1, epochs=1, progress=False)[0] for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a, b)


def test_a_half_written_network_is_never_loaded(quick, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        cli.main(["demo", "--out", str(tmp_path)])
    assert not list(tmp_path.glob("seed0/*.pt*"))
    assert json.loads((tmp_path / "seed0" / "xo_deep.json").read_text())["train_loss"] == [0.7]


@pytest.mark.parametrize(
    "arguments",
    [
        ["kernels", "xo_deep"],
        ["kernels", "xo_deep", "--layer", "features.conv3"],
        ["maps", "xo", "--image", "IMAGE", "--top", "4"],
        ["overview", "xo_wide", "--image", "IMAGE"],
        ["kernels", "torchvision:squeezenet1_1"],
        ["overview", "cifar_cnn", "--image", "IMAGE"],
        ["maps", "filters", "--image", "IMAGE"],
        ["why", "xo", "--image", "IMAGE"],
        ["units", "xo", "--data", "FOLDER", "--channels", "0", "3"],
        [
            "why",
            "cifar_cnn",
            "--image",
            "IMAGE",
            "--method",
            "saliency",
            "--method",
            "gradcam",
            "--class",
            "cat",
            "--class",
            "0",
        ],
    ],
)
def test_views_of_untrained_models(arguments, drawing, tmp_path):
    words = {"IMAGE": str(drawing), "FOLDER": str(drawing.parent)}
    arguments = [words.get(word, word) for word in arguments]
    out = tmp_path / "new" / "sheet.png"
    assert cli.main([*arguments, "--random", "--out", str(out)]) == 0
    assert min(size(out)) > 60


def test_weights_from_a_file(tmp_path):
    torch.save(card("xo").build().state_dict(), tmp_path / "w.pt")
    assert cli.main(["kernels", "xo", "--weights", str(tmp_path / "w.pt"), "--out", str(tmp_path / "k.png")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels", "alexnett", "--random"], "no model 'alexnett'; close: 'alexnet'"),
        (["kernels", "xo"], "'xo' has no published weights"),
        (["kernels", "xo", "--random", "--layer", "features.conv9"], "no layer 'features.conv9' in XONet; close:"),
        (["kernels", "xo", "--random", "--out", "sheet.jpg"], "sheet.jpg"),
        (["kernels", "xo", "--weights", "nothing.pt"], "nothing.pt"),
        (["maps", "xo", "--random", "--image", "nothing.png"], "no image file 'nothing.png'"),
        (["maps", "xo", "--random", "--image", "NOTES"], "not an image that Pillow can read"),
        (["maps", "xo", "--random", "--image", "IMAGE", "--layer", "*"], "gave .* outputs"),
        (["why", "xo", "--random", "--image", "IMAGE", "--class", "circel"], "no class 'circel'; close: 'circle'"),
        (["why", "xo", "--random", "--image", "IMAGE", "--class", "2"], "'?xo'? has no class '2'.* It has 2"),
        (["why", "xo", "--random", "--image", "IMAGE", "--method", "cam"], "no method 'cam'; there are saliency"),
        (["units", "xo", "--random", "--data", "nowhere"], "'nowhere' holds no images"),
        (["units", "xo", "--random", "--data", "FOLDER", "--layer", "classifier.fc1"], "no map"),
        (["demo", "--epochs", "0"], "epochs must be at least 1"),
        (["demo", "--out", "/proc/nowhere"], "cannot write to /proc/nowhere: .*choose a folder with --out"),
    ],
)
def test_mistakes_get_one_line_and_no_traceback(arguments, message, drawing, tmp_path, capsys, monkeypatch):
    import re

    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("not a picture")
    words = {"IMAGE": str(drawing), "NOTES": str(tmp_path / "notes.txt"), "FOLDER": str(tmp_path)}
    assert cli.main([words.get(word, word) for word in arguments]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("featviz: ")
    assert re.search(message, said[0]), said[0]


def test_interrupt(monkeypatch, capsys):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "demo", stop)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "featviz: interrupted\n"


def test_help_and_module_form():
    done = subprocess.run([sys.executable, "-m", "torch_featviz", "--help"], capture_output=True, text=True, check=True)
    assert "overview" in done.stdout
