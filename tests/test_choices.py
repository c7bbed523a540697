"""What is chosen by name: the names are those that there are, and the rest is told without torch."""

import subprocess
import sys

import pytest

from torch_featviz import choices
from torch_featviz.errors import OptionError
from torch_featviz.explain import methods
from torch_featviz.explain.deconvnet import deconvnet
from torch_featviz.zoo import card, lite, names
from torch_featviz.zoo.card import ModelCard


def test_the_methods_are_those_that_there_are():
    assert tuple(methods._KINDS) == choices.METHODS
    for name in choices.METHODS:
        choices.check_method(name)
    with pytest.raises(OptionError, match="no method 'cam'; there are saliency"):
        choices.check_method("cam")


def test_the_models_are_those_that_there_are():
    assert names() == list(choices.MODELS)
    assert choices.MODELS[-1] == lite.NAME
    assert all(isinstance(card(name), ModelCard) for name in choices.MODELS[:-1])
    for name in (*choices.MODELS, "torchvision:resnet18", "timm:anything.at_all"):
        choices.check_model(name)
    for name in ("alexnett", "torchvision:", "timm:", "", "net.py"):
        with pytest.raises(OptionError, match=f"no model {name!r}; close: "):
            choices.check_model(name)


def test_the_projections_are_those_that_there_are():
    import torch
    from torch import nn

    net, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval(), torch.randn(1, 1, 8, 8)
    for name in choices.PROJECTIONS:
        deconvnet(net, x, "0", units=[(0, 1, 1)], projection=name)
    with pytest.raises(OptionError, match="deconvnet"):
        deconvnet(net, x, "0", units=[(0, 1, 1)], projection="other")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["atlas", "--help"],
        [],
        ["nothing"],
        ["kernels"],
        ["kernels", "alexnett"],
        ["kernels", "xo", "--size", "8", "8"],
        ["kernels", "xo", "--out", "a.jpg"],
        ["why", "xo", "--image", "a.png", "--method", "cam"],
        ["atlas", "xo", "--image", "a.png", "--training", "nowhere"],
        ["bench", "xo", "--batch", "0"],
        ["look", "--help"],
        ["look", "xo"],
        ["look", "alexnett", "--image", "a.png"],
        ["look", "xo", "--image", "nowhere.png"],
        ["kernels", "xo", "--weights", "nowhere.pt"],
        ["report"],
        ["report", "nowhere"],
        ["report", "--help"],
    ],
)
def test_it_is_told_without_torch(words, tmp_path):
    """Which takes seconds to import, as does numpy a part of one."""
    program = (
        "import sys\n"
        "from torch_featviz.cli import main\n"
        "try:\n"
        f"    code = main({words!r})\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "assert not {'torch', 'numpy', 'captum', 'matplotlib'} & set(sys.modules), 'imported'\n"
        "sys.exit(code)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "imported" not in ran.stderr
    assert ran.returncode == {"--help": 0, "--version": 0}.get(words[-1] if words else "", ran.returncode)
    assert ran.returncode in (0, 1, 2)
    assert (ran.stdout if ran.returncode == 0 else ran.stderr).strip()
    assert "Traceback" not in ran.stderr
