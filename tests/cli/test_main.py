"""The grammar, what comes out where, and the exit codes."""

import functools
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch import nn

from torch_featviz import cli, demo
from torch_featviz.cli import commands, grammar

COMMANDS = ["demo", "look", "layers", "kernels", "maps", "overview", "why", "attention", "units", "atlas", "report"]
COMMANDS += ["bench", "prove"]


@pytest.fixture
def run(forks):
    """The command in a process of its own, with its output buffered as in a shell."""
    command = "import runpy; runpy.run_module('torch_featviz', run_name='__main__', alter_sys=True)"
    return functools.partial(forks.run, command, warn="error")


def helped(capsys, *command):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_every_command_is_told(capsys):
    listed = re.findall(r"^    (\w+)\s", helped(capsys), re.MULTILINE)
    assert listed == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example_that_parses(command, capsys):
    said = helped(capsys, command)
    *before, example = said.rstrip().splitlines()
    assert before[-1] == "example:"
    first, *words = shlex.split(example)
    assert first == "featviz"
    assert words[0] == command
    assert grammar.parser().parse_args(words).run
    assert command in ("demo", "report") or "This runs the file's code." in said


@pytest.mark.parametrize("command", ["kernels", "maps", "overview", "why", "units"])
def test_the_example_works(command, capsys, tmp_path, monkeypatch):
    words = shlex.split(helped(capsys, command).rstrip().splitlines()[-1])[1:]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for path in ("cat.jpg", "photos/a.jpg"):
        Image.new("RGB", (300, 260), "orange").save(path)
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"{command}.png\n"
    assert (tmp_path / f"{command}.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["kernels"],
        ["maps", "xo"],
        ["units", "xo"],
        ["kernels", "xo", "--random", "--weights", "w.pt"],
        ["kernels", "xo", "--size", "3"],
        ["kernels", "xo", "--json"],
        ["bench", "xo", "--batch", "many"],
    ],
)
def test_arguments_that_make_no_sense(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: featviz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels", "alexnett", "--random"], "no model 'alexnett'; close: 'alexnet'"),
        (["kernels", "torchvision:", "--random"], r"no model 'torchvision:'; .*torchvision:NAME and timm:NAME"),
        (["maps", "xo", "--random", "--image", "IMAGE", "--cmap", "jet"], "no colour map 'jet' here: .* by lightness"),
        (["kernels", "xo"], "'xo' has no published weights; give --weights FILE, or --random"),
        (["kernels", "xo", "--random", "--layer", "features.conv9"], "no layer 'features.conv9' in XONet; close:"),
        (["kernels", "xo", "--random", "--device", "gpu0"], "--device is cpu, cuda, cuda:1, mps .*; got 'gpu0'"),
        (["kernels", "xo", "--random", "--device", "cuda:99"], "--device cuda:99 is not here: "),
        (["demo", "--device", "cuda:99"], "--device cuda:99 is not here: "),
        (["kernels", "xo", "--random", "--size", "8", "8"], "--size is for FILE.py:NAME; xo has a size of its own"),
        (["kernels", "xo", "--random", "--out", "sheet.jpg"], "must end in '.png', the one kind .* 'sheet.jpg'"),
        (["atlas", "xo", "--random", "--image", "IMAGE", "--out", "a.png"], "must end in '.html', .* 'a.png'"),
        (["kernels", "xo", "--random", "--out", "FOLDER/d.png"], r"d.png' is a folder; name a file with --out"),
        (["kernels", "xo", "--random", "--out", "IMAGE/x.png"], "cannot write .*x.png': .*choose a folder you may"),
        (["kernels", "xo", "--random", "--out", "/proc/x.png"], "cannot write '/proc/x.png': .*choose a folder"),
        (["kernels", "xo", "--weights", "nothing.pt"], "no weights file 'nothing.pt'"),
        (["kernels", "xo", "--weights", "HARM"], "holds Python objects .*could run code; save model.state_dict"),
        (["maps", "xo", "--random", "--image", "IMAGE", "--layer", "*"], r"'\*' matches 13 layers .*; choose one"),
        (["maps", "xo", "--random", "--image", "IMAGE", "--top", "0"], "top must be at least 1"),
        (
            ["maps", "xo", "--random", "--image", "IMAGE", "--layer", "classifier.fc1"],
            r"'classifier.fc1' returns shape \(1, 1200\), whose places are not known",
        ),
        (["overview", "xo", "--random", "--image", "IMAGE", "--image", "IMAGE"], "one image at a time, got 2"),
        (["look", "xo", "--random", "--image", "IMAGE", "--image", "IMAGE"], "one image at a time, got 2"),
        (["look", "xo", "--random", "--image", "nothing.png"], "no image file 'nothing.png'"),
        (["look", "xo", "--random", "--image", "a\0.png"], r"no image file 'a\\x00.png'"),
        (["look", "xo", "--weights", "\ud800.pt", "--image", "."], r"no weights file '\\ud800.pt'"),
        (["report", "nowhere"], "'nowhere' holds no samples.jsonl; give a folder that a Monitor wrote to"),
        (["report", "FOLDER", "--out", "a.jpg"], "--out must end in '.png'"),
        (["why", "xo", "--random", "--image", "IMAGE", "--class", "circel"], "no class 'circel'; close: 'circle'"),
        (["why", "xo", "--random", "--image", "IMAGE", "--class", "2"], "xo has no class '2'.* It has 2"),
        (["why", "xo", "--random", "--image", "IMAGE", "--method", "cam"], "no method 'cam'; there are saliency"),
        (["attention", "xo", "--random", "--image", "IMAGE"], "no attention is computed in the model"),
        (["units", "xo", "--random", "--data", "nowhere"], "'nowhere' has no images"),
        (["units", "xo", "--random", "--data", "FOLDER", "--layer", "classifier.fc1"], "not a map"),
        (["bench", "xo", "--batch", "0"], "--batch must be at least 1, got 0"),
        (
            ["atlas", "xo", "--random", "--image", "IMAGE", "--training", "nowhere"],
            "no folder 'nowhere'; --training tak",
        ),
        (["bench", "xo", "--layer", "conv"], "no layer 'conv' in XONet"),
        (["demo", "--epochs", "0"], "epochs must be at least 1"),
        (["demo", "--out", "/proc/nowhere"], "cannot write to /proc/nowhere: .*choose a folder with --out"),
    ],
)
def test_mistakes_get_one_line_and_no_traceback(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (130, 120), 200).save("drawing.png")
    (tmp_path / "d.png").mkdir()
    torch.save(nn.Linear(1, 1), "harm.pt")
    words = {"IMAGE": "drawing.png", "HARM": "harm.pt", "FOLDER": str(tmp_path)}
    for name, path in words.items():
        arguments = [word.replace(name, path) for word in arguments]
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    said = [line for line in err.splitlines() if not line.endswith("...")]  # progress
    assert len(said) == 1
    assert said[0].startswith("featviz: ")
    assert re.search(message, said[0]), said[0]


class Harm:
    def __reduce__(self):
        return (print, ("code ran",))


def test_weights_never_run_code(tmp_path, capfd):
    torch.save({"a": Harm()}, tmp_path / "harm.pt")
    torch.load(tmp_path / "harm.pt", weights_only=False)
    assert "code ran" in capfd.readouterr().out  # so it would
    assert cli.main(["kernels", "xo", "--weights", str(tmp_path / "harm.pt")]) == 1
    out, err = capfd.readouterr()
    assert "code ran" not in out + err
    assert "could run code" in err


def test_interrupt(monkeypatch, capsys):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "demo", stop)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr() == ("", "featviz: interrupted\n")


def test_a_bug_of_ours_is_not_hidden(monkeypatch, tmp_path):
    def bug(on):
        raise KeyError("ours")

    monkeypatch.setattr(commands, "kernels", bug)
    bug.__name__ = "kernels"
    with pytest.raises(KeyError):
        cli.main(["kernels", "xo", "--random", "--out", str(tmp_path / "k.png")])


def test_a_missing_folder_is_made_and_only_the_path_is_printed(tmp_path, run):
    out = tmp_path / "new" / "er" / "k.png"
    done = run("kernels", "xo", "--random", "--out", str(out))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}\n", "computed on cpu\n")
    assert out.is_file()


def test_a_reader_that_went_away_is_no_news(tmp_path, run):
    reader, writer = os.pipe()
    os.close(reader)
    done = run("kernels", "xo", "--random", "--out", str(tmp_path / "k.png"), stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "computed on cpu\n")
    assert (tmp_path / "k.png").is_file()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is full, which Linux has")
def test_a_full_disk_under_stdout(tmp_path, run):
    with open("/dev/full", "w") as full:
        done = run("kernels", "xo", "--random", "--out", str(tmp_path / "k.png"), stdout=full)
    told = "computed on cpu\nfeatviz: cannot write to stdout: No space left on device.\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_a_name_that_cannot_be_printed(tmp_path):
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    line = [sys.executable, "-W", "error", "-m", "torch_featviz", "kernels", "xo", "--random"]
    out = ["--out", str(tmp_path / "Кот.png")]
    done = subprocess.run([*line, *out], capture_output=True, text=True, env=ascii_only)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/\\u041a\\u043e\\u0442.png\n")
    assert (tmp_path / "Кот.png").is_file()
