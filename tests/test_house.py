"""Each question about a model is answered in one place: what is called where, read from the code itself."""

import ast
import functools
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "torch_featviz"

# Question -> the functions that answer it.
ANSWERS = {
    "how is a model run so that nothing changes?": "model.run:run, model.twin:twin, inspect.activations:activations",
    "how is one looked at while it runs?": "model.run:hooked",
    "what is a model given?": "model.inputs:Inputs",
    "which layer is meant?": "model.layers:resolve, model.layers:layer_name",
    "what kernel does a layer use?": "model.weights:kernel_of, model.weights:planes_of",
    "is a layer in use that is not called?": "model.use:in_use",
    "what is the answer?": "model.answer:answer_of, model.answer:classes_of, model.answer:figures",
    "which class is an item of?": "model.labels:label_of, model.labels:labels_of",
    "which map does the answer depend on?": "inspect.cut:answer_map",
    "which boxes did it find, and by which logit?": "model.boxes:find_boxes, model.logits:own_logit",
    "which maps do boxes depend on?": "inspect.heads:head_maps",
    "which axes are images, channels, places?": "inspect.walk:walk",
    "how does an image become what the model takes?": "zoo.card:ModelCard",
    "what do the values of an image mean?": "picture.images:unit_images, picture.images:clipped",
}

# What may be called or written -> in which files.
PLACES = {
    "register_forward_hook": {"model/run.py", "model/norms.py"},  # the latter stay on a twin's norm layers
    "register_forward_pre_hook": {"model/run.py", "model/norms.py"},
    "register_full_backward_hook": set(),
    "deepcopy of a model": {"model/objects.py", "capture/copies.py"},  # the latter completes one that a user makes
    "training =": {"model/untouched.py", "model/copier.py", "zoo/fit.py"},  # the last trains
    "eval()": {"zoo/card.py", "zoo/file_nets.py", "zoo/recipe.py", "cli/given.py"},  # of networks that are made there
    "softmax": {"model/answer.py", "capture/attention/rows.py"},  # the latter of scores of keys
}


@functools.cache
def uses(tree: ast.AST):
    """What a file does of these."""
    return set(found(tree))


def found(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name.startswith("register_") and "hook" in name:
                yield name
            elif name == "deepcopy":
                yield "deepcopy of a model"
            elif name == "eval" and isinstance(node.func, ast.Attribute):
                yield "eval()"
            elif name in ("softmax", "log_softmax"):
                yield "softmax"
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Attribute) and target.attr == "training" for target in targets):
                yield "training ="


@functools.cache
def files():
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("names", ANSWERS.values(), ids=ANSWERS)
def test_the_answer_to_each_question_exists(names):
    for name in names.split(", "):
        module, _, function = name.partition(":")
        assert callable(getattr(importlib.import_module(f"torch_featviz.{module}"), function))


@pytest.mark.parametrize("what", PLACES)
def test_it_is_done_in_one_place(what):
    done = {file for file, tree in files().items() if what in uses(tree)}
    done -= {"training/findings.py"} if what.startswith("deepcopy") else set()  # which copies plain numbers
    assert done == PLACES[what]


def test_the_search_sees_what_it_looks_for():
    code = "m.register_forward_hook(f); copy.deepcopy(m); m.training = True; m.eval(); F.softmax(x, 1); x.softmax(1)"
    assert uses(ast.parse(code)) == {
        "register_forward_hook",
        "deepcopy of a model",
        "training =",
        "eval()",
        "softmax",
    }


# Private names of PyTorch that any file may use: they have been the same since PyTorch 1.
EVERYWHERE = {"_version", "_modules", "_parameters", "_buffers"} | {
    f"_{kind}_hooks" for kind in ("forward", "forward_pre", "backward", "backward_pre")
}
# Private names that are not PyTorch's.
OTHERS = {
    *("_asdict", "_field_defaults", "_fields", "_make", "_replace"),  # of named tuples
    "_getframe",  # of sys
    *("_generate_state_key", "_DummyExperiment"),  # of Lightning
}
CAPTUM = "captum.attr._"


def private_names(tree: ast.AST):
    """Attributes and modules that begin with one underscore, also where a text names them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not node.level and not (node.module or "").startswith(CAPTUM):
            yield from (*(node.module or "").split("."), *(alias.name for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "hasattr",
            "setattr",
            "delattr",
        ):
            yield from (value.value for value in node.args[1:2] if isinstance(value, ast.Constant))
        elif isinstance(node, (ast.Subscript, ast.Compare)):  # module.__dict__["_forward_hooks"], "_orig_mod" in names
            yield from (value.value for value in ast.iter_child_nodes(node) if isinstance(value, ast.Constant))
        elif isinstance(node, ast.Constant) and str(node.value).startswith("torch."):
            yield from str(node.value).split(".")


def own_names(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
            yield getattr(node, "attr", getattr(node, "id", ""))


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name[1:].isidentifier()


def test_private_parts_of_torch_are_named_in_one_file():
    trees = {file: tree for file, tree in files().items() if file != "torch_private.py"}
    known = {*EVERYWHERE, *OTHERS, *(name for tree in trees.values() for name in own_names(tree))}
    strangers = {file: {n for n in private_names(tree) if is_private(n)} - known for file, tree in trees.items()}
    assert {file: names for file, names in strangers.items() if names} == {}


@pytest.mark.parametrize(
    "code",
    [
        "torch._C.f()",
        "import torch._dynamo",
        "from torch._dynamo import config",
        "from torch.nn.modules.conv import _ConvNd",
        "sys.modules['torch._dynamo']",
        "function._schema",
        "getattr(module, '_call_impl')",
        "'_orig_mod' in names",
        "vars(module)['_compiled_call_impl']",
    ],
)
def test_the_search_sees_private_names(code):
    assert [name for name in private_names(ast.parse(code)) if is_private(name)]
