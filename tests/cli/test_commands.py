"""What each command makes."""

import json
import math
import os
import re
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from PIL import Image

from torch_featviz import cli, demo, training, views
from torch_featviz.bench import Added, Overhead, Ratio
from torch_featviz.cli import commands
from torch_featviz.cli.given import device_given
from torch_featviz.demo import made
from torch_featviz.demo.sheets import Learnt, _why, drawings
from torch_featviz.errors import FileError
from torch_featviz.inspect import summary
from torch_featviz.picture import Sheet
from torch_featviz.prove import Claim, Proof
from torch_featviz.training.findings import read_findings
from torch_featviz.zoo import XO, TrainingCurves, card


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
        return net.eval(), TrainingCurves((0.7,), (0.5,), (0.7,), (0.5,), (0.1,)), None

    monkeypatch.setattr(demo, "train_xo", train)
    return calls


def size(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


@pytest.fixture
def few(monkeypatch):
    """The demo's sheets left out but for one, and an empty page."""

    drawn = []

    def draw(learnt):
        drawn.append("sheet")
        return views.samples(learnt.test, n=1)

    def page(*given):
        drawn.append("page")
        return Namespace(html="<p>")

    monkeypatch.setattr(demo, "sheets", lambda: {"9-what-it-was-asked.png": draw})
    monkeypatch.setattr(demo, "page", page)
    return drawn


def test_demo_writes_every_sheet_and_the_page(quick, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 0
    sheets = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert [int(name[0]) for name in sheets] == [1, 2, 3, 3, 3, 4, 4, 5, 5, 6, 7, 7, 7, 8, 8, 8, 9]
    assert sheets[0] == "1-why-it-decided.png"
    assert all(min(size(tmp_path / "out" / name)) > 90 for name in sheets)
    films = sorted((tmp_path / "out").glob("*.webp"))
    assert [film.name for film in films] == ["5-how-its-kernels-grew.webp", "5-how-its-maps-grew.webp"]
    for path in films:
        with Image.open(path) as film:
            assert film.n_frames == 1
    assert training.History.load(tmp_path / "out" / "seed0" / "training").steps == [0]
    said, progress = capsys.readouterr()
    assert "Held-out accuracy:" in said
    assert "Training xo_deep" in progress
    assert "Training xo_deep" not in said
    assert f"Open {tmp_path / 'out' / 'atlas.html'} in a browser" in said
    assert "import torch, torch_featviz as fv" in said
    page = (tmp_path / "out" / "atlas.html").read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["learning"]["steps"] == [0]
    assert {why["method"] for why in data["why"]} == {"gradcam", "integrated_gradients", "occlusion"}
    assert any(layer["units"] for layer in data["layers"])


def test_demo_keeps_the_network(quick, few, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 0
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 0
    assert quick == [0]
    assert "Found the network that an earlier run trained" in capsys.readouterr().err
    for again in (["--retrain"], ["--epochs", "1"], ["--seed", "3"]):
        assert cli.main(["demo", "--out", str(tmp_path / "out"), *again]) == 0
    assert quick == [0, 0, 0, 3]
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 0
    assert quick == [0, 0, 0, 3]
    kept = tmp_path / "out" / "seed0"
    assert "Found" in capsys.readouterr().err.splitlines()[-1]
    for name in demo.TRAINING:  # its own, and not the last run's
        assert (tmp_path / "out" / name).read_bytes() == (kept / name).read_bytes()


def listed(capsys):
    """The files that a run lists, and whether each was there already."""
    lines = re.findall(r"^  (\S+?)( \(unchanged\))?$", capsys.readouterr().out, re.M)
    return {line.rpartition("/")[2]: bool(unchanged) for line, unchanged in lines}


def test_what_is_there_stays(quick, few, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    again = lambda *more: cli.main(["demo", "--out", str(out), *more])
    assert again() == 0
    first = listed(capsys)
    names = {"9-what-it-was-asked.png", "atlas.html", *demo.TRAINING}
    assert first == dict.fromkeys(names, False)
    assert few == ["sheet", "page"]
    written = {name: (out / name).read_bytes() for name in names}
    few.clear()
    monkeypatch.setattr(demo, "_load", lambda path: pytest.fail("nobody needs the network"))
    assert again() == 0
    assert listed(capsys) == dict.fromkeys(names, True)
    assert few == []
    assert {name: (out / name).read_bytes() for name in names} == written


@pytest.mark.parametrize("spoil", ["unlink", "write_text"])
def test_a_file_that_was_deleted_or_edited_is_made_again(quick, few, tmp_path, capsys, spoil):
    again = lambda *more: cli.main(["demo", "--out", str(tmp_path), *more])
    assert again() == 0
    for name in ("9-what-it-was-asked.png", demo.REPORT):
        before = (tmp_path / name).read_bytes()
        getattr(tmp_path / name, spoil)(*(["edited"] if spoil == "write_text" else []))
        capsys.readouterr()
        assert again() == 0
        assert [each for each, same in listed(capsys).items() if not same] == [name]
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    ("curves", "says"),
    [
        ("[" * 100_000, "value must be JSON that nests a few levels deep"),
        ('{"train_loss": 3}', "train_loss must be a list, got 3"),
        ('{"train_loss": [1e400, "x"]}', r"train_loss\[1\] must be a number, got 'x'"),
        ('{"more": []}', "more must be absent"),
        ("{}", "train_loss must be a list of one number an epoch, got none"),
    ],
)
def test_curves_that_are_none_are_told(tmp_path, curves, says):
    (tmp_path / "net.json").write_text(curves)
    with pytest.raises(
        FileError, match=rf"net\.json' is not what an earlier run wrote: {says}.*; --retrain begins anew"
    ):
        demo._curves(tmp_path / "net.json")


def test_curves_are_read_as_they_were_written(tmp_path):
    curves = TrainingCurves((1.5, math.nan), (0.5, 1.0), seconds=(3.0, 4.0))
    demo._keep(tmp_path / "net.pt", torch.nn.Linear(1, 1), curves)
    assert repr(demo._curves(tmp_path / "net.json")) == repr(curves)


@pytest.mark.parametrize(
    "record",
    [
        *('{"state": 3', "[" * 100_000, "[]", "3", "\xff", '{"state": "x"}'),
        '{"state": "x", "accuracy": 1e400, "files": {}}',
        f'{{"state": "x", "accuracy": 1{"0" * 400}, "files": {{}}}}',
        '{"state": "x", "accuracy": 0.5, "files": {"a": 3}}',
    ],
)
def test_a_record_that_is_none_counts_for_nothing(tmp_path, record):
    (tmp_path / "made.json").write_text(record, encoding="latin-1")
    found = made.Made(tmp_path / "made.json", "x")
    assert found.accuracy is None
    assert found.write(tmp_path / "a", lambda: b"a")
    found.keep(0.5)
    again = made.Made(tmp_path / "made.json", "x")
    assert again.accuracy == 0.5
    assert again.same(tmp_path / "a")


@pytest.mark.parametrize("change", ["weights", "code", "record", "device"])
def test_all_is_made_again_of_another_network_or_by_other_code(quick, few, tmp_path, capsys, monkeypatch, change):
    again = lambda *more: cli.main(["demo", "--out", str(tmp_path), *more])
    assert again() == 0
    kept = tmp_path / "seed0" / demo.STATE
    if change == "weights":
        torch.save({name: value + 1 for name, value in torch.load(kept).items()}, kept)
    elif change == "record":
        (tmp_path / "seed0" / made.RECORD).write_text('{"state": 3')
    elif change == "code":
        code = tmp_path / "code"
        code.mkdir()
        (code / "a.py").write_text("1")
        monkeypatch.setattr(made, "_ROOM", code)
        assert again() == 0
        (code / "a.py").write_text("2")
    else:
        monkeypatch.setattr(torch, "__version__", "0.0")
    capsys.readouterr()
    assert again() == 0
    assert not any(listed(capsys).values())


def test_commands_find_the_weights_of_the_demo(quick, few, tmp_path, drawing, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["kernels", "xo_deep"]) == 1
    assert "has no published weights" in capsys.readouterr().err
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "--seed", "2"]) == 0
    os.utime("featviz-demo/seed0/xo_deep.pt", (1, 1))
    capsys.readouterr()
    titles = []
    monkeypatch.setattr(Sheet, "save", lambda self, path: titles.append(self) or path)
    assert cli.main(["maps", "xo_deep", "--image", str(drawing)]) == 0
    assert "weights: featviz-demo/seed2/xo_deep.pt, which featviz demo trained" in capsys.readouterr().err
    assert cli.main(["maps", "xo_deep", "--image", str(drawing), "--weights", "featviz-demo/seed2/xo_deep.pt"]) == 0
    assert "weights:" not in capsys.readouterr().err
    assert torch.equal(titles[0].cells, titles[1].cells)
    assert "untrained" not in titles[0].title
    assert cli.main(["kernels", "xo"]) == 1  # another network


def test_the_three_lines_work(quick, few, tmp_path, capsys, monkeypatch):
    assert cli.main(["demo", "--out", str(tmp_path / "out"), "--seed", "2"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), {})
    assert size(tmp_path / "kernels.png")


@pytest.mark.parametrize("command", ["kernels", "maps", "overview", "why", "units"])
def test_an_untrained_network_says_so(command, drawing, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(Sheet, "save", lambda self, path: titles.append(self.title) or path)
    given = ["--data", str(tmp_path)] if command == "units" else ["--image", str(drawing)]
    image = [] if command == "kernels" else given
    assert cli.main([command, "xo", "--random", *image]) == 0
    torch.manual_seed(0)  # as for the command
    torch.save(card("xo").build().state_dict(), tmp_path / "xo.pt")
    assert cli.main([command, "xo", "--weights", str(tmp_path / "xo.pt"), *image]) == 0
    untrained, trained = titles
    assert untrained.startswith("xo (untrained)")
    assert trained == untrained.replace(" (untrained)", "", 1)


def test_attention_is_the_view_on_what_was_typed(drawing, tmp_path, capsys):
    out = tmp_path / "heads.png"
    asked = ["attention", "timm:test_vit", "--random", "--image", str(drawing), "--layer", "blocks.1"]
    assert cli.main([*asked, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    info = card("timm:test_vit")
    torch.manual_seed(0)
    expected = views.attention(info.build().eval(), info.preprocess(drawing), "blocks.1", card=info)
    assert expected.title == "Attention of the class token in blocks.1.attn"
    named = replace(expected, title=f"timm:test_vit (untrained). {expected.title}")
    assert out.read_bytes() == named.png()


def test_units_are_projected_as_asked(tmp_path, drawing, monkeypatch):
    sheets = []
    monkeypatch.setattr(Sheet, "save", lambda self, path: sheets.append(self) or path)
    given = ["units", "xo", "--random", "--data", str(drawing.parent), "--layer", "features.conv1"]
    for more in ([], ["--projection", "deconvnet"]):
        assert cli.main([*given, *more]) == 0
    assert "(guided backpropagation)" in sheets[0].title
    assert "(deconvnet)" in sheets[1].title
    page = tmp_path / "page.html"
    for more, by in (([], "guided backpropagation"), (["--projection", "deconvnet"], "deconvnet")):
        asked = ["--image", str(drawing), "--data", str(drawing.parent), "--out", str(page), *more]
        assert cli.main(["atlas", "xo", "--random", *asked]) == 0
        data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)[1])
        assert next(layer["units"]["projected_by"] for layer in data["layers"] if layer["units"]) == by


def test_a_half_written_network_is_never_loaded(quick, few, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.glob("seed0/*.pt*"))
    assert json.loads((tmp_path / "seed0" / "xo_deep.json").read_text())["train_loss"] == [0.7]


@pytest.mark.parametrize(
    "arguments",
    [
        ["kernels", "xo_deep"],
        ["kernels", "xo_deep", "--layer", "features.conv3"],
        ["maps", "xo", "--image", "IMAGE", "--top", "4"],
        ["maps", "xo", "--image", "IMAGE", "--one-scale", "--cmap", "gray"],
        ["overview", "xo_wide", "--image", "IMAGE"],
        ["overview", "xo", "--image", "IMAGE", "--all", "--cmap", "RdBu"],
        ["kernels", "torchvision:squeezenet1_1"],
        ["overview", "cifar_cnn", "--image", "IMAGE"],
        ["maps", "filters", "--image", "IMAGE"],
        ["why", "xo", "--image", "IMAGE"],
        ["attention", "timm:test_vit", "--image", "IMAGE", "--rollout"],
        ["attention", "timm:test_vit", "--image", "IMAGE", "--image", "IMAGE", "--layer", "blocks.*"],
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


def test_maps_of_tokens(drawing, tmp_path, monkeypatch, capsys):
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.conv, self.cls_token = nn.Conv2d(3, 4, 8, 8), nn.Parameter(torch.randn(1, 1, 4))\n"
        "        self.mlp, self.head = nn.Linear(4, 4), nn.Linear(4, 2)\n\n    def forward(self, x):\n"
        "        x = self.conv(x).flatten(2).mT\n"
        "        x = self.mlp(torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1))\n"
        "        return self.head(x[:, 0])\n"
    )
    sheets = []
    monkeypatch.setattr(Sheet, "save", lambda self, path: sheets.append(self) or path)
    what = ["maps", f"{tmp_path}/nets.py:Net", "--size", "32", "48", "--random", "--image", str(drawing)]
    assert cli.main([*what, "--layer", "mlp"]) == 0
    assert sheets[0].cells.shape == (4, 3, 4, 6)
    assert "1 class token: not drawn" in sheets[0].legend.notes
    assert cli.main([*what, "--layer", "head"]) == 1
    assert "'head' returns shape (1, 2), whose places are not known" in capsys.readouterr().err


def test_weights_from_a_file(tmp_path):
    torch.save(card("xo").build().state_dict(), tmp_path / "w.pt")
    assert cli.main(["kernels", "xo", "--weights", str(tmp_path / "w.pt"), "--out", str(tmp_path / "k.png")]) == 0


def test_several_images_side_by_side(drawing, tmp_path):
    other = tmp_path / "below" / drawing.name
    other.parent.mkdir()
    Image.new("L", (50, 90), 90).save(other)
    for command in ("maps", "why"):
        both = ["--image", str(drawing), "--image", str(other), "--out", str(tmp_path / "two.png")]
        assert cli.main([command, "xo", "--random", *both]) == 0
        assert cli.main([command, "xo", "--random", *both[2:4], "--out", str(tmp_path / "one.png")]) == 0
        assert max(size(tmp_path / "two.png")) > max(size(tmp_path / "one.png"))


def test_demo_for_machines(quick, few, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"accuracy", "files"}
    assert 0 <= told["accuracy"] <= 1
    assert sorted(told["files"]) == sorted(map(str, [path for path in tmp_path.iterdir() if path.is_file()]))


@pytest.fixture
def figures(monkeypatch):
    """What `overhead` was asked, and figures that it might give."""
    asked = []

    def overhead(model, inputs, layers):
        assert not model.training
        assert not torch.is_grad_enabled()
        asked.append((list(inputs.shape), layers))
        return Overhead(Ratio(1.5, 1.25, 1.75), Added(2e-6, 1e-6, 3e-6), 7, 5_000_000, 2_000_000, "cpu")

    monkeypatch.setattr(commands, "overhead", overhead)
    return asked


def test_layers_for_people(capsys):
    assert cli.main(["layers", "xo"]) == 0
    said = capsys.readouterr().out
    assert said == f"{summary(card('xo').build(), card('xo').input_size)}\n"


def test_layers_for_machines(capsys, tmp_path):
    path = tmp_path / "net.py"
    path.write_text("from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n")
    assert cli.main(["layers", f"{path}:build", "--size", "9", "7", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["model"], plain["input_shape"]) == (f"{path}:build", [1, 3, 9, 7])
    assert [(layer["name"], layer["shape"]) for layer in plain["layers"]] == [("0", [1, 4, 7, 5]), ("1", [1, 4, 7, 5])]
    assert cli.main(["layers", f"{path}:build"]) == 1
    assert "does not say how large its images are; do so with --size H W" in capsys.readouterr().err


def test_bench_for_people(figures, capsys):
    assert cli.main(["bench", "xo", "--batch", "3", "--layer", "features.*"]) == 0
    said = capsys.readouterr().out
    assert figures == [([3, 1, 116, 116], "features.*")]
    for figure in ("1.5 (1.25 to 1.75)", "2.00 (1.00 to 3.00) us", "7 calls", "5 MB", "+2 MB", "3×1×116×116"):
        assert figure in said


def test_bench_for_machines(figures, capsys):
    assert cli.main(["bench", "xo", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert figures == [([1, 1, 116, 116], None)]
    assert (told["model"], told["layer"], told["input"]) == ("xo", None, [1, 1, 116, 116])
    assert told["ratio"] == {"median": 1.5, "low": 1.25, "high": 1.75}
    assert told["us_per_layer"]["high"] == pytest.approx(3)
    assert (told["calls"], told["bytes_held"], told["peak_over_bare"]) == (7, 5_000_000, 2_000_000)


def test_bench_uses_the_weights_it_is_given(figures, tmp_path):
    assert cli.main(["bench", "xo", "--weights", str(tmp_path / "none.pt")]) == 1


@pytest.fixture
def proof(monkeypatch):
    """What `prove` was given, and claims of which the last fails where that is asked for."""
    claims = [Claim("outputs", "Outputs are the same", True, "eval", 4, 2, 0.5)]
    asked = []

    def prove(model, images):
        asked.append((type(model).__name__, tuple(images.shape)))
        return Proof("XONet", claims)

    monkeypatch.setattr(commands, "prove_it", prove)
    return asked, claims


def test_prove_for_people(proof, drawing, capsys):
    asked, claims = proof
    words = ["prove", "xo", "--random", "--image", str(drawing), "--image", str(drawing)]
    assert cli.main(words) == 0
    assert asked == [("XONet", (2, 1, 116, 116))]
    assert capsys.readouterr().out.splitlines() == [
        "xo (untrained): 1 of 1 claims hold",
        "holds        Outputs are the same: eval",
        "4 forwards, 2 backwards, 0.5 s",
    ]
    claims.append(Claim("state", "Nothing else changes", False, "train: random numbers of torch"))
    assert cli.main(words) == 1
    assert "FAILS        Nothing else changes: train: random numbers of torch" in capsys.readouterr().out


def test_prove_for_machines(proof, drawing, capsys):
    assert cli.main(["prove", "xo", "--random", "--image", str(drawing), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["holds"], len(told["claims"])) == ("xo (untrained)", True, 1)
    assert told["claims"][0]["name"] == "outputs"


def test_prove_proves(drawing, capsys):
    assert cli.main(["prove", "xo", "--random", "--image", str(drawing)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("xo (untrained): ")
    assert "FAIL" not in said


@pytest.fixture
def page(monkeypatch):
    """A stand-in for the room that makes the page: what it was given, and a file."""
    given = {}

    class Page:
        def save(self, path):
            path.write_text("<!doctype html>")
            return path

    def atlas(model, images, **options):
        given.update(options, model=model, images=images)
        return Page()

    monkeypatch.setattr(commands, "make_page", atlas)
    return given


def test_atlas_writes_the_page_of_a_persons_own_file(drawing, tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))"
    )
    out = tmp_path / "out.html"
    assert cli.main(["atlas", f"{tmp_path}/net.py:build", "--image", str(drawing), "--out", str(out)]) == 0
    page = out.read_text("utf-8")
    assert "net.py:build on drawing.png" in page
    assert capsys.readouterr().out == f"{out}\n"


def test_atlas_is_given_all_that_was_typed(page, drawing, tmp_path, capsys):
    other, out, runs = tmp_path / "b.png", tmp_path / "out.html", tmp_path / "runs"
    runs.mkdir()
    Image.new("RGB", (30, 300), "red").save(other)
    images = ["--image", str(drawing), "--image", str(other), "--data", str(tmp_path), "--training", str(runs)]
    rest = ["--method", "gradcam", "--method", "saliency", "--class", "cross", "--class", "0", "--megabytes", "2.5"]
    rest += ["--projection", "deconvnet"]
    assert cli.main(["atlas", "xo", "--random", *images, *rest, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    known = card("xo")
    assert not page["model"].training
    expected = torch.cat([known.preprocess(path) for path in (drawing, other)])
    assert torch.equal(page["images"], expected)
    assert page["card"] == replace(known, name="xo (untrained)")
    assert page["names"] == ["drawing.png", "b.png"]
    assert [tuple(batch.shape) for batch in page["loader"]] == [(2, 1, 116, 116)]
    assert (page["methods"], page["targets"], page["megabytes"]) == (["gradcam", "saliency"], [1, 0], 2.5)
    assert (page["training"], page["projection"]) == (runs, "deconvnet")


def test_atlas_leaves_to_the_page_what_was_not_typed(page, drawing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["atlas", "xo", "--random", "--image", str(drawing)]) == 0
    assert capsys.readouterr().out == "atlas.html\n"
    assert {name for name, value in page.items() if value is None} == {
        "loader",
        "methods",
        "targets",
        "projection",
        "training",
        "megabytes",
    }


def test_by_default_a_gpu_is_taken_where_there_is_one(monkeypatch):
    for there, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        taken = []
        monkeypatch.setattr(torch, "zeros", lambda *_, device, taken=taken: taken.append(device) or torch.ones(1))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a card")
        assert device_given(Namespace(device=None)) == torch.device(expected)
        assert taken == [torch.device(expected)]


@pytest.mark.parametrize("seed", range(3))
def test_the_demo_shows_whole_drawings(seed):
    data = XO("test", seed)
    for label, image in enumerate(drawings(data).values()):
        assert any(torch.equal(image, other) and label == k for other, k in map(data.__getitem__, range(len(data))))
        paper = float(image.median())
        dark = (image[0] < paper - 0.35).nonzero()
        assert int(dark.min()) >= 16
        assert int(dark.max()) < 100


def test_look_is_the_view_on_what_was_typed(drawing, tmp_path, capsys):
    out = tmp_path / "look.png"
    assert cli.main(["look", "xo", "--random", "--image", str(drawing), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{out}\n", "computed on cpu\n")
    info = card("xo")
    torch.manual_seed(0)
    expected = views.look(info.build().eval(), drawing, card=replace(info, name="xo (untrained)"))
    assert out.read_bytes() == expected.png()


def test_report_is_that_of_the_folder(tmp_path, capsys):
    runs, out = tmp_path / "runs" / "mine", tmp_path / "new.png"
    net = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with training.Monitor(net, every=1, to=runs) as watch:
        for _ in range(3):
            with watch.step() as step:
                loss = net(torch.ones(2, 4)).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                step.log(loss=loss)
    assert cli.main(["report", str(runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_bytes() == watch.report(title="How it learnt: mine").png()


def test_the_findings_of_a_report_are_those_that_were_written(tmp_path):
    finding = {"step": 3, "kind": "dead", "names": ["a", "b"], "text": "so"}
    (tmp_path / "samples.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "layers": {}, "parameters": {}, **more}) + "\n"
            for step, more in ((2, {}), (3, {"findings": [finding]}))
        )
    )
    (found,) = read_findings(tmp_path)
    assert (found.step, found.kind, found.names, found.text) == (3, "dead", ("a", "b"), "so")


def test_no_sheet_of_the_demo_begins_with_a_method_that_is_worse():
    torch.manual_seed(0)
    curves = TrainingCurves((0.7,), (0.5,), (0.7,), (0.5,), (0.1,))
    why = _why(Learnt(card("xo_deep").build().eval(), curves, 0))
    marks = [heading[0] for heading in why.columns[1:]]
    assert marks == sorted(marks, key="✓=✗".index)
    assert marks[0] != "✗"


def test_a_segmenter_is_explained_over_its_mask(tmp_path, drawing, monkeypatch, capsys):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "from torch_featviz import ModelCard\n"
        "def net():\n"
        "    made = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))\n"
        "    made[2].bias.data[1] += 9\n"
        "    return made\n"
        "def build():\n"
        "    return ModelCard('pets', net, (1, 16, 20), classes=('background', 'cat', 'sofa'))\n"
    )
    monkeypatch.chdir(tmp_path)
    called = ["why", "net.py:build", "--random", "--image", str(drawing)]
    for more in ([], ["--class", "cat"], ["--class", "1"]):
        assert not cli.main([*called, *more])
        assert size("why.png")
    for name, words in (
        ("sofa", "class 'sofa' has no pixel in image 0; there are 'cat'."),
        ("cta", "pets has no class 'cta'; close: 'cat'. It has 3."),
    ):
        assert cli.main([*called, "--class", name])
        assert words in capsys.readouterr().err
