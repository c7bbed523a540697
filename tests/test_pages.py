"""The README, its translation and the pages of the site: their length, their links, their code and what it calls."""

import ast
import inspect
import os
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from skimage import data

import torch_featviz as fv
from torch_featviz import training, zoo
from torch_featviz.cli import main

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
TUTORIALS = ("four_filters", "xo", "alexnet", "cifar_mlp", "cifar_cnn")
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "guide").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "zh").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def named(path):
    return str(path.relative_to(ROOT))


def blocks(path, language="python"):
    return [code for kind, code in FENCE.findall(path.read_text()) if kind == language]


def code_of(text):
    """Code without comments and layout."""
    return ast.unparse(ast.parse(text))


@pytest.mark.parametrize("path", READMES, ids=named)
def test_a_readme_is_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 150
    words = re.sub(r"<code>.*?</code>", "", FENCE.sub("", text))
    assert len(re.findall(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+", words)) <= 900 * (2 if "zh" in path.name else 1)


def test_the_readmes_have_the_same_code():
    ours, theirs = (re.findall(r"<code>(.*?)</code>", path.read_text()) for path in READMES)
    assert ours == theirs
    assert len(ours) == 7
    for language in ("python", ""):
        ours, theirs = (blocks(path, language) for path in READMES)
        assert ours
        same = code_of if language else str
        assert [same(code) for code in ours] == [same(code) for code in theirs]


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_in_chinese_has_the_code_of_the_one_in_english(name):
    script = (ROOT / "examples" / "tutorials" / f"{name}.py").read_text()
    head, *rest = ast.parse(script).body
    assert isinstance(head, ast.Expr)  # the page's text
    chinese = "\n".join(blocks(ROOT / "docs" / "zh" / f"{name}.md"))
    assert code_of(chinese) == "\n".join([ast.unparse(ast.Module(rest, []))])


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_lead_somewhere(path):
    text = FENCE.sub("", path.read_text())
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        where, _, part = link.partition("#")
        made_by_the_site = "sphx_glr" in where or re.match(r"(\.\./)?(tutorials|howto)/", where)
        if "://" in where or made_by_the_site:
            continue
        target = (path.parent / where) if where else path
        assert target.exists() or target.with_suffix(".md").exists(), f"{link} of {named(path)}"
        if part:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert part in slugs, f"{link} of {named(path)}: {slugs}"


def parsed(code):
    """The syntax trees of a piece of code, or of each of its lines that is one."""
    try:
        return [ast.parse(textwrap.dedent(code))]
    except SyntaxError:
        trees = []
    for line in code.splitlines():
        for more in ("", "\n    pass"):
            try:
                trees.append(ast.parse(line.split("  #")[0].strip() + more))
                break
            except SyntaxError:
                continue
    return trees


def public(node):
    """What a name of ours stands for: `fv.kernels`, `zoo.fit`, `evaluate`; None if it is none of ours."""
    if isinstance(node, ast.Name):
        rooms = [room for room in (zoo, training) if node.id in room.__all__]
        return getattr(rooms[0], node.id) if rooms else None
    if not isinstance(node, ast.Attribute):
        return None
    if isinstance(node.value, ast.Name) and node.value.id in ("fv", "zoo"):
        return getattr(fv if node.value.id == "fv" else zoo, node.attr)
    if ast.unparse(node.value) == "fv.zoo":
        return getattr(zoo, node.attr)
    return None


def checked_calls(trees):
    """How many calls of ours there are; each is held against the signature of what it calls."""
    found = 0
    for tree in trees:
        for node in ast.walk(tree):
            called = public(node.func) if isinstance(node, ast.Call) else None
            if called is None or any(isinstance(part, ast.Starred) for part in node.args):
                continue
            if any(isinstance(part, ast.Constant) and part.value is ... for part in node.args):
                continue
            names = {word.arg: None for word in node.keywords if word.arg}
            try:
                inspect.signature(called).bind(*node.args, **names)
            except TypeError as error:
                raise AssertionError(f"{ast.unparse(node)}: {error}") from error
            found += 1
    return found


# So many at least.
CALLS = {"views": 10, "capture": 8, "why": 8, "transformers": 14, "pictures": 4, "training": 2, "zoo": 4}
WITH_CALLS = [(ROOT / "README.md", 8), (ROOT / "docs" / "steps.md", 90)]
WITH_CALLS += [(ROOT / "docs" / "guide" / f"{name}.md", least) for name, least in CALLS.items()]


@pytest.mark.parametrize(("path", "least"), WITH_CALLS, ids=[named(path) for path, _ in WITH_CALLS])
def test_what_a_page_calls_is_there(path, least):
    text = path.read_text()
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", text)) + re.findall(r"<code>(.*?)</code>", text)
    assert checked_calls([tree for code in (*blocks(path), *inline) for tree in parsed(code)]) >= least


def test_a_call_that_is_not_there_would_be_told():
    with pytest.raises(AssertionError, match="unexpected keyword argument 'color'"):
        checked_calls(parsed('fv.kernels(model, color="red")'))
    with pytest.raises(AttributeError, match="no attribute 'kernel'"):
        checked_calls(parsed("fv.kernel(model)"))


def test_all_steps_of_the_tutorials_have_a_line():
    rows = re.findall(r"^\| (.+) \| (.+) \|$", (ROOT / "docs" / "steps.md").read_text(), re.MULTILINE)
    steps = [(step, line) for step, line in rows if step not in ("step", "---")]
    assert len(steps) == 142
    drawings = [step for step, line in steps if "`" not in line]
    assert drawings == ["conv layer animation", "FC drawing", "max/mean pooling example"]


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """A folder with a photograph, where weights that would be downloaded are random."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).save("cat.jpg")

    def state(*_args, **_kwargs):
        torch.manual_seed(0)
        return torchvision.models.resnet18().state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", state)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", state)
    return tmp_path


def test_the_code_of_the_readme_runs(in_a_folder):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(72, 2))
    place = {
        "torch": torch,
        "loader": [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))] * 3,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
    }
    first, second, third = blocks(READMES[0])
    exec(first, place)
    exec(second, place)
    place["model"] = model
    exec(third, place)
    assert sorted(os.listdir(in_a_folder)) == ["answer.png", "cat.jpg", "look.png", "runs", "training.png"]


def test_the_commands_of_the_readme_run(in_a_folder, capsys):
    commands = [line for code in blocks(READMES[0], "") for line in code.splitlines() if line.startswith("featviz")]
    assert [line.split()[1] for line in commands] == ["look", "report"]
    model = torch.nn.Linear(2, 2)
    with fv.Monitor(model, to="runs/mine", ignore={"untrained": ["*"]}) as watch, watch.step():
        model(torch.rand(1, 2)).sum().backward()
    for line in commands:
        assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    for name in ("look.png", "report.png"):
        with Image.open(in_a_folder / name) as picture:
            picture.load()
