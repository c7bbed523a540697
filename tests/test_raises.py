"""`Raises` is true: the gate checks all public calls, what their own code raises is named, and what is named is tested.

"Own code" is the function and what it calls in the same file. What other rooms raise is told by the fuzz in
`test_gate.py`: whatever comes out of a public call is named, or is of a wrong kind of argument.
"""

import ast
import inspect
import re
import sys
import warnings
from collections import OrderedDict
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import torch_featviz as fv
from torch_featviz import errors, gate
from torch_featviz.errors import DeviceError, DtypeError, LayerError, OptionError, ShapeError

TESTS = Path(__file__).parent
ERRORS = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, fv.FeatvizError)}

# Calls that the gate does not check, and why.
UNGATED = {
    "their arguments are the model's": "FeatureExtractor.forward, FeatureTap.forward, Monitor.step",
    "each call of a layer leads there": "Histogram.*, Moments.*, TopK.*, ToCPU.*",
    "they check what they are given": "Moments, TopK, Ring, Scale.*, KernelNormalizer.forward, zoo.FilterBank.*",
    "calls of ours make them": "Activations, zoo.Augmentation.*",
}


def public(rooms):
    """Functions, classes and methods, by name: of the package, and of some of its rooms what is not in the former."""
    found = {}
    for owner, prefix in ((fv, ""), *((import_module(f"torch_featviz.{room}"), f"{room}.") for room in rooms)):
        for name in owner.__all__:
            value = getattr(owner, name)
            value = getattr(value, name, None) if inspect.ismodule(value) else value  # a room that can be called
            if prefix and name in fv.__all__:
                continue
            if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, BaseException)):
                found[prefix + name] = value
            for key, method in vars(value).items() if inspect.isclass(value) else ():
                if inspect.isfunction(method) and (key == "__call__" or not key.startswith("_")):
                    found[f"{prefix}{name}.{key}"] = method
    return found


PUBLIC = public(["zoo"])
WRITTEN = public(["zoo", "capture", "explain", "inspect", "picture", "survey", "training", "views"])


def named(call):
    """The classes in `Raises`; what is said of a class goes for its methods, too."""
    owner = WRITTEN.get(call.rpartition(".")[0])
    return in_docstring(WRITTEN[call]) | (in_docstring(owner) if inspect.isclass(owner) else set())


def in_docstring(value):
    section = re.search(r"^Raises:\n((?: .*\n)+)", f"{inspect.getdoc(value)}\n", re.M)
    lines = re.findall(r"^( +)((?:\w+Error, )*\w+Error): ", section[1], re.M) if section else []
    assert {indent for indent, _ in lines} <= {" " * 4}, value
    return {name for _, names in lines for name in names.split(", ")}


# The gate


def is_gated(function):
    while function is not None:
        if function.__code__.co_filename == gate.__file__:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def takes_something(call):
    """Whether a call has parameters; a class that writes no `__init__` itself is a result, which users do not make."""
    value = PUBLIC[call]
    if inspect.isclass(value):
        value = vars(value).get("__init__")
        if value is None or value.__code__.co_filename == "<string>":
            return False
    return bool(set(inspect.signature(value).parameters) - {"self"})


def is_checked(call):
    value = PUBLIC[call]
    return is_gated(vars(value)["__init__"] if inspect.isclass(value) else value)


def test_the_gate_checks_each_public_call():
    left = {call for call in PUBLIC if takes_something(call) and not is_checked(call)}
    patterns = [name.replace(".*", r"(\.\w+)?") for names in UNGATED.values() for name in names.split(", ")]
    assert {call for call in left if not any(re.fullmatch(pattern, call) for pattern in patterns)} == set()
    assert [each for each in patterns if not any(re.fullmatch(each, call) for call in left)] == []


# What their own code raises


@cache
def definitions(module):
    """Functions of a file by name, and methods as `Class.name`."""
    found = {}
    for node in ast.parse(Path(sys.modules[module].__file__).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(part, ast.FunctionDef):
                found[f"{node.name}.{part.name}"] = part
    return found


def raised(module, name, seen=()):
    """The classes of errors that a function raises by itself, or by another one of its file."""
    known, owner, found = definitions(module), name.rpartition(".")[0], set()
    if name not in known or name in seen:
        return found
    for node in ast.walk(known[name]):
        if isinstance(node, ast.Raise) and node.exc is not None:
            kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            found |= {each.id for each in ast.walk(kind) if isinstance(each, ast.Name)} & ERRORS
        for called in called_by(node, owner):
            found |= raised(module, called, (*seen, name))
    return found


def called_by(node, owner):
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Name):
        yield from (function.id, f"{function.id}.__init__", f"{function.id}.__post_init__")
    elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        yield f"{owner if function.value.id in ('self', 'cls') else function.value.id}.{function.attr}"


def of_own_code(call):
    value = WRITTEN[call]
    if inspect.isclass(value):
        starts = [f"{value.__name__}.__init__", f"{value.__name__}.__post_init__"]
    else:
        starts = [value.__qualname__]
    return set().union(*(raised(value.__module__, start) for start in starts))


@pytest.mark.parametrize("call", WRITTEN)
def test_what_its_own_code_raises_is_named(call):
    assert of_own_code(call) - named(call) == set()
    assert named(call) <= ERRORS


def test_the_search_sees_what_is_raised():
    assert of_own_code("tile") == {"ShapeError", "OptionError"}  # the latter in a function that it calls
    assert of_own_code("ReceptiveField.box") >= {"OptionError"}
    assert of_own_code("Scale") == {"OptionError"}  # in a method of its own
    assert named("Scale.fit") == {"OptionError", "ShapeError", "DtypeError", "DeviceError"}
    assert len([call for call in PUBLIC if of_own_code(call)]) > 50


# What is named has a test


@cache
def error_tests():
    """Of each test of an error: the names in it, in its parameters, and in what it uses of its file."""
    found = []
    for path in TESTS.rglob("test_*.py"):
        parts = {}
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [node]
            parts |= {getattr(each, "id", getattr(each, "name", "")): node for each in targets}
        words = {name: words_in(node) for name, node in parts.items()}
        for name, own in words.items():
            if name.startswith("test") and {"raises", "match"} <= own:
                found.append(own.union(*(words[other] for other in own & words.keys())))
    return found


def words_in(node):
    return {
        word
        for each in ast.walk(node)
        for word in (getattr(each, "id", ""), getattr(each, "attr", ""), getattr(each, "arg", ""))
    }


@pytest.mark.parametrize("call", [call for call in PUBLIC if in_docstring(PUBLIC[call])])
def test_what_is_named_is_tested(call):
    owner, _, name = call.rpartition(".")
    name = owner if name == "__call__" else name
    missing = {kind for kind in in_docstring(PUBLIC[call]) if not any({name, kind} <= words for words in error_tests())}
    assert missing == set()


class Uncopied(nn.Module):
    """Cannot be copied."""

    def forward(self, x):
        return x.flatten(1)

    def __deepcopy__(self, memo):
        raise RuntimeError("there is one of me")


NET = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is deprecated
    TRACED = torch.jit.trace(NET, torch.rand(1, 1, 8, 8))
X = torch.rand(2, 1, 8, 8)
META = {"additional_forward_args": torch.ones(1, device="meta")}
FLOATS, COPIED = "images must be a tensor of floats as the model takes them", "Uncopied cannot be copied"
MOVED = "the inputs are on meta and the weights of Sequential on cpu; move the inputs"


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: fv.adversarial(NET, X.int()), DtypeError, FLOATS),
        (lambda: fv.adversarial(NET, X, **META), DeviceError, MOVED),
        (lambda: fv.atlas(NET, X.int()), DtypeError, FLOATS),
        (lambda: fv.atlas(TRACED, X), LayerError, "a TorchScript module hides its layers"),
        (lambda: fv.compare({"a": Uncopied()}, X), DtypeError, f"^'a': {COPIED}"),
        (lambda: fv.compare({"a": TRACED}, X), LayerError, "^'a': a TorchScript module hides its layers"),
        (lambda: fv.look(NET, X[:1].int()), DtypeError, FLOATS),
        (lambda: fv.overview(NET, X.int()), DtypeError, FLOATS),
        (lambda: fv.projection(NET, X.int(), "0", (0, 1, 1)), DtypeError, FLOATS),
        (lambda: fv.projection(NET, X[:1], "0", (0, 1, 1), **META), DeviceError, MOVED),
        (lambda: fv.prove(NET, X, **META), DeviceError, MOVED),
        (lambda: fv.receptive_field(Uncopied(), "", (8, 8)), DtypeError, COPIED),
        (lambda: fv.shapes(Uncopied(), (1, 1, 8, 8)), DtypeError, COPIED),
        (lambda: fv.shapes(TRACED, (1, 1, 8, 8)), LayerError, "layer '0' is a ScriptModule"),
        (lambda: fv.summary(Uncopied(), (1, 8, 8)), DtypeError, COPIED),
        (lambda: fv.zoo.augment_marks(X.int()), DtypeError, FLOATS),
        (lambda: fv.zoo.augment_marks(X[0]), ShapeError, "images must be 'b c h w' and not empty"),
        (lambda: fv.zoo.card("filters").denormalize(X.int()), DtypeError, "images must be floats, got torch.int32"),
        (lambda: fv.zoo.write_image_folder("new", seed=-1), OptionError, "seed must be 0 or above"),
        (lambda: fv.Monitor(NET, probe=X[0, 0]), ShapeError, "Sequential does not accept inputs of shape"),
        (lambda: fv.GridTiler()(X[0]), ShapeError, "maps must be 'n c h w'"),
        (lambda: fv.GridTiler(ncols=0)(X), OptionError, "ncols must be at least 1, got 0"),
        (lambda: fv.KernelNormalizer(quantile=2.0), OptionError, "quantile must be in"),
        (lambda: fv.KernelNormalizer()(X[:0]), ShapeError, "expected at least one value"),
        (lambda: fv.KernelNormalizer()(X.to(torch.cfloat)), DtypeError, "expected real values, got torch.complex64"),
        (lambda: fv.pixels(X, scale=fv.Scale(), value_range="unit"), OptionError, "both set the colours; pass one"),
        (
            lambda: fv.effective_field(fv.receptive_field(NET, "1", (8, 8))),
            OptionError,
            "the effective field was not computed; call receptive_field",
        ),
        (lambda: fv.images(X, value_range=lambda x: x[..., :2]), OptionError, "value_range must return images"),
        (lambda: fv.Moments(dim=7).axis(X, 1), ShapeError, r"Moments\(dim=7\): an output of shape .* no such axis"),
        (lambda: fv.TopK(dim=7).axis(X, 1), ShapeError, r"TopK\(dim=7\): an output of shape .* no such channel axis"),
        (lambda: fv.Layout(images=None, grid=(1, 2)).maps(X), ShapeError, r"\(2, 1, 8, 8\) have no batch axis"),
        (lambda: fv.Layout(grid=(1, 2)).put_back(X, X[:, 0, :2]), ShapeError, "maps must be of shape"),
    ],
)
def test_errors_that_no_other_test_names(call, error, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match):
        call()


def test_patches_of_data_that_changed():
    data, net = [torch.rand(4, 1, 8, 8)], nn.Conv2d(1, 1, 3)
    nn.init.ones_(net.weight)
    for changed, error, match in (
        (torch.rand(4, 8, 8), ShapeError, "loader must yield images 'b c h w', got shape"),
        (["a"], DtypeError, "loader must yield float images"),
    ):
        best = fv.top_patches(net, data[:], "", k=2)
        best.source.loader[0] = changed
        with pytest.raises(error, match=match):
            best.patches(0)


def test_faithfulness_to_another_model():
    other = nn.Sequential(OrderedDict(zip("abcd", NET, strict=True)))
    why = fv.attribute(other, X, method="gradcam")
    with pytest.raises(LayerError, match="no layer 'b' in Sequential"):
        fv.faithfulness(NET, X, why)
