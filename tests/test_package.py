"""The package as a whole: what importing it brings along, and what it exports."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import torch_featviz as fv


def alone(code):
    """What code prints in a process that has imported nothing."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def fresh(forks):
    """What code prints in a process that has imported PyTorch, but nothing of this package."""

    def run(code):
        done = forks.run(code, warn="error")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    return run


@pytest.mark.parametrize(
    "code", ["import torch_featviz", "import torch_featviz.plugin", "from torch_featviz import errors"]
)
def test_import_brings_no_torch(code):
    code += "; import sys; print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert alone(code) == "False\n"


def test_use_is_light():
    heavy = "('captum', 'matplotlib', 'torchvision', 'lightning', 'transformers', 'ignite', 'torch._dynamo', 'pytest')"
    code = f"import torch_featviz as fv, sys; fv.bench, fv.capture; print([m for m in {heavy} if m in sys.modules])"
    assert alone(code) == "[]\n"


def test_all_is_sorted_and_there():
    assert list(fv.__all__) == sorted(fv.__all__)
    assert all(hasattr(fv, name) for name in fv.__all__)
    assert set(fv.__all__) <= set(dir(fv))


def test_no_two_public_things_have_one_name():
    rooms = ("atlas", "capture", "explain", "inspect", "model", "picture", "survey", "training", "views", "zoo")
    owners = {}
    for room in rooms:
        module = importlib.import_module(f"torch_featviz.{room}")
        for name in getattr(module, "__all__", ()):
            owners.setdefault(name, set()).add(id(getattr(module, name)))
    assert {name for name, things in owners.items() if len(things) > 1} == set()


def test_type_checkers_see_what_there_is():
    tree = ast.parse(Path(fv.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and not isinstance(node.test, ast.UnaryOp)]
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen == {*fv.__all__, "bench"}


def test_what_is_not_there():
    with pytest.raises(AttributeError, match="module 'torch_featviz' has no attribute 'kernel'"):
        fv.kernel  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'kernel'"):
        from torch_featviz import kernel  # noqa: F401


@pytest.mark.parametrize(
    "code",
    [
        "import torch_featviz.capture",
        "import torch_featviz.capture.session",
        "from torch_featviz.capture import capture",
        "import torch_featviz.inspect.walk",
        "from torch_featviz.bench import overhead",
        "import torch_featviz as fv; fv.zoo; fv.tile",
        "from torch_featviz import *",
    ],
)
def test_a_room_is_a_module_and_can_be_called_as_its_function_whatever_was_imported_first(code, fresh):
    code += "; import torch_featviz as fv, torch, sys, inspect, torch_featviz.capture as room"
    code += "; print(room is fv.capture is sys.modules['torch_featviz.capture'], room.Moments is fv.Moments)"
    code += "; print(type(fv.capture(torch.nn.ReLU())).__name__, *inspect.signature(fv.capture).parameters)"
    code += "; print(fv.atlas is sys.modules['torch_featviz.atlas'], list(inspect.signature(fv.atlas).parameters)[:2])"
    assert fresh(code).splitlines() == [
        "True True",
        "Capture model layers into of every stop ops",
        "True ['model', 'images']",
    ]


def test_rooms_are_modules(fresh):
    assert fresh(
        "import torch_featviz as fv; print(*(type(r).__name__ for r in (fv.views, fv.picture, fv.bench)))"
    ) == ("module module module")
    assert fresh("from torch_featviz import demo, cli; print(type(demo).__name__)") == "module"


def test_every_error_is_a_featviz_error_and_a_builtin_one():
    for name, kind in vars(fv.errors).items():
        if isinstance(kind, type):
            root = fv.errors.FeatvizWarning if issubclass(kind, Warning) else fv.FeatvizError
            assert issubclass(kind, root), name
            assert kind is root or len(kind.__mro__) > 4
