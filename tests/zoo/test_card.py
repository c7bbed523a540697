import pickle
import sys
from argparse import Namespace
from dataclasses import FrozenInstanceError, replace
from types import ModuleType
from urllib.error import URLError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from torch_featviz.errors import (
    DtypeError,
    FeatvizError,
    FileError,
    MissingError,
    OptionError,
    ShapeError,
    WeightsError,
)
from torch_featviz.zoo import ModelCard, card, names

TINY = ModelCard("tiny", lambda: nn.Conv2d(3, 4, 3), (3, 8, 10), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
channel = st.floats(0.05, 2)


@given(
    mean=st.tuples(channel, channel, channel),
    std=st.tuples(channel, channel, channel),
    seed=st.integers(0, 99),
)
def test_denormalize_undoes_normalize(mean, std, seed):
    known = replace(TINY, mean=mean, std=std)
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(known.denormalize(known.normalize(images)), images, rtol=0, atol=1e-12)
    want = torch.stack([(images[:, i] - mean[i]) / std[i] for i in range(3)], 1)
    torch.testing.assert_close(known.normalize(images), want)


def test_a_card_is_frozen():
    with pytest.raises(FrozenInstanceError):
        TINY.name = "other"


@pytest.mark.parametrize(
    "image",
    [torch.rand(3, 20, 30), torch.rand(1, 1, 8, 10), Image.new("L", (5, 9)), Image.new("RGBA", (50, 50))],
)
def test_preprocess_gives_what_the_net_takes(image):
    assert TINY.preprocess(image).shape == (1, 3, 8, 10)


def test_preprocess_of_the_right_size_only_normalises():
    images = torch.rand(2, 3, 8, 10)
    assert torch.equal(TINY.preprocess(images), TINY.normalize(images))


def test_preprocess_does_not_touch_its_input():
    image = torch.rand(1, 8, 10)
    before = image.clone()
    TINY.preprocess(image).add_(1)
    assert torch.equal(image, before)


def test_colour_becomes_grey_by_luma():
    known = ModelCard("grey", nn.Identity, (1, 2, 2))
    red = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 2, 2)
    torch.testing.assert_close(known.preprocess(red), torch.full((1, 1, 2, 2), 0.299))


def test_resize_cuts_out_the_middle():
    known = ModelCard("mid", nn.Identity, (1, 4, 4), resize=4)
    wide = torch.zeros(1, 4, 12)
    wide[:, :, 4:8] = 1
    assert torch.equal(known.preprocess(wide), torch.ones(1, 1, 4, 4))
    squeezed = replace(known, resize=None).preprocess(wide)
    assert squeezed.mean().item() == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize(
    ("image", "error", "match"),
    [
        (torch.rand(8, 8), ShapeError, r"'c h w' or 'b c h w' and not empty, got shape \(8, 8\)"),
        (torch.rand(3, 0, 8), ShapeError, "not empty"),
        (torch.rand(2, 8, 8), ShapeError, "takes 3 channels, got an image with 2"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), DtypeError, "bytes or of floats in .*, got torch.int64"),
        ("none.png", FileError, "no image file 'none.png'"),
        (7, DtypeError, "a PIL image or a file, got int"),
        (torch.full((3, 8, 8), 255.0), OptionError, "got 255 to 255; divide bytes by 255"),
        (torch.full((3, 8, 8), float("nan")), OptionError, "got nan to nan"),
    ],
)
def test_preprocess_refuses(image, error, match):
    with pytest.raises(error, match=match):
        TINY.preprocess(image)


@pytest.mark.parametrize("call", [TINY.normalize, TINY.denormalize])
def test_normalize_refuses_other_channels(call):
    with pytest.raises(ShapeError, match=r"c = 3, got shape \(1, 8, 8\)"):
        call(torch.rand(1, 8, 8))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mean": (0.1, 0.2)}, "mean must have 1 or 3 values"),
        ({"std": (0.1, 0.2)}, "std must have 1 or 3 values"),
        ({"std": (0.0,)}, "std must be above 0"),
        ({"input_size": (3, 0, 8)}, "input_size must be"),
        ({"input_size": (0, 0, 0)}, "input_size must be"),
    ],
)
def test_impossible_cards(change, match):
    with pytest.raises(OptionError, match=match):
        replace(TINY, **change)


def below(prefix, state, **more):
    return {f"{prefix}{key}": value for key, value in state.items()} | more


def adam(model):
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(1, 3, 8, 10)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


CHECKPOINTS = {
    "bare": lambda s: s,
    **{key: lambda s, key=key: {key: s, "epoch": 3} for key in ("net", "model", "state_dict", "model_state_dict")},
    "another key": lambda s: {"generator": s, "epoch": 3, "best": torch.tensor(0.5)},
    "a usual key beside tensors": lambda s: {"metrics": {"accuracy": torch.tensor(0.5)}, "net": s},
    "DataParallel": lambda s: below("module.", s),
    "compiled": lambda s: below("_orig_mod.", s),
    "compiled DataParallel": lambda s: {"model": below("_orig_mod.module.", s)},
    "a Lightning module": lambda s: {
        "state_dict": below("model.", s, **{"criterion.weight": torch.ones(4)}),
        "pytorch-lightning_version": "2.5",
        "loops": {"fit_loop": {"state_dict": {}}},
        "hyper_parameters": {"lr": 0.1},
    },
    "compiled in a Lightning module": lambda s: {"state_dict": below("net._orig_mod.", s)},
    "averaged": lambda s: below("module.", s, n_averaged=torch.tensor(7)),
}


@pytest.mark.parametrize("wrap", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_load_a_checkpoint(tmp_path, wrap):
    model = TINY.build()
    torch.save(wrap(model.state_dict()), tmp_path / "w.pt")
    loaded = TINY.load(tmp_path / "w.pt")
    assert not loaded.training
    assert torch.equal(loaded.weight, model.weight)
    assert torch.equal(loaded.bias, model.bias)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "last.ckpt", "model_best.pth.tar", "pytorch_model.bin"])
def test_load_a_file_beside_its_optimizer(tmp_path, name):
    model = TINY.build()
    torch.save({"net": model.state_dict(), "optimizer": adam(model), "epoch": 3}, tmp_path / name)
    assert torch.equal(TINY.load(tmp_path / name).weight, model.state_dict()["weight"])


def test_load_one_of_several(tmp_path):
    model, ema = TINY.build(), TINY.build()
    torch.save({"model": model.state_dict(), "model_ema": ema.state_dict()}, tmp_path / "w.pt")
    with pytest.raises(
        WeightsError, match=r"several state dicts, .model., .model_ema.; use one: load\(path, key='model'\)"
    ):
        TINY.load(tmp_path / "w.pt")
    assert torch.equal(TINY.load(tmp_path / "w.pt", key="model_ema").weight, ema.weight)
    with pytest.raises(WeightsError, match="no state dict under 'net', only under model, model_ema"):
        TINY.load(tmp_path / "w.pt", key="net")
    torch.save(below("student.", model.state_dict()) | below("teacher.", ema.state_dict()), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"contain 'tiny' several times, under student\., teacher\."):
        TINY.load(tmp_path / "w.pt")


def test_a_whole_model_and_a_checkpoint_with_objects_are_refused_by_name(tmp_path):
    torch.save(TINY.build(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"holds Python objects \(torch.nn.modules.conv.Conv2d\).*save model.state_"):
        TINY.load(tmp_path / "w.pt")
    torch.save({"net": TINY.build().state_dict(), "args": Namespace(lr=1)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"holds Python objects \(argparse.Namespace\)"):
        TINY.load(tmp_path / "w.pt")


def test_load_safetensors(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingError, match=r"reading 'w.safetensors' needs `pip install 'safetensors'`"):
        TINY.load(tmp_path / "w.safetensors")
    fake, model = ModuleType("safetensors.torch"), TINY.build()
    fake.load_file = lambda path: model.state_dict()
    monkeypatch.setitem(sys.modules, "safetensors.torch", fake)
    assert torch.equal(TINY.load(tmp_path / "w.safetensors").weight, model.weight)

    def broken(path):
        raise ValueError("header too short")

    fake.load_file = broken
    with pytest.raises(WeightsError, match="not a safetensors file, or is corrupt: header too short"):
        TINY.load(tmp_path / "w.safetensors")


class Harm:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("write", "error", "match"),
    [
        (lambda p: None, FileError, "no weights file"),
        (lambda p: p.write_bytes(b"not a checkpoint"), WeightsError, "corrupt"),
        (lambda p: p.write_bytes(b""), WeightsError, "corrupt"),
        (lambda p: p.write_bytes(b"PK\x03\x04 cut short"), WeightsError, "corrupt"),
        (lambda p: torch.save({"weight": Harm()}, p), WeightsError, "could run code"),
        (lambda p: torch.save([1, 2], p), WeightsError, "holds no state dict, got list"),
        (lambda p: torch.save({0: torch.zeros(2)}, p), WeightsError, "holds no state dict, only 0; save model"),
        (
            lambda p: torch.save({"epoch": 3, "optimizer": {}}, p),
            WeightsError,
            "no state dict, only epoch, optimizer",
        ),
        (
            lambda p: torch.save({"net": below("encoder.", nn.Conv2d(3, 4, 3, bias=False).state_dict())}, p),
            WeightsError,
            "2 missing: bias, weight; 1 unexpected: encoder.weight",
        ),
        (lambda p: torch.save({}, p), WeightsError, "holds no state dict"),
        (
            lambda p: torch.save(nn.Linear(2, 2).state_dict(), p),
            WeightsError,
            r"of another shape: bias \(2,\) for \(4,\)",
        ),
        (
            lambda p: torch.save({"a": torch.ones(1)}, p),
            WeightsError,
            "do not fit 'tiny': 2 missing: bias, weight; 1 unexpected: a",
        ),
    ],
)
def test_load_refuses(tmp_path, capsys, write, error, match):
    write(tmp_path / "w.pt")
    with pytest.raises(error, match=match):
        TINY.load(tmp_path / "w.pt")
    assert "code ran" not in capsys.readouterr().out


def test_a_plain_pickle_is_not_run(tmp_path, capsys):
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(WeightsError, match=r"could run code|corrupt"):
        TINY.load(tmp_path / "w.pt")
    assert "code ran" not in capsys.readouterr().out


def test_load_of_another_kind(tmp_path):
    (tmp_path / "w.onnx").touch()
    with pytest.raises(OptionError, match=r"must be a .pt, .pth, .ckpt, .tar, .bin or .safetensors file, got 'w.onnx'"):
        TINY.load(tmp_path / "w.onnx")


def test_load_without_any_source():
    with pytest.raises(WeightsError, match="'tiny' has no published weights; train it, or pass a file"):
        TINY.load()


def test_load_without_network(monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match=r"tried https://.*no route to host.*load\('alexnet-owt-7be5be79.pth'\)"):
        card("alexnet").load()


def test_load_from_the_network(monkeypatch):
    model = TINY.build()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **how: model.state_dict())
    assert torch.equal(replace(TINY, weights="https://example.org/w.pth").load().weight, model.weight)


@pytest.mark.parametrize("name", ["xo_deap", "torchvision:resnet19", "alexnett"])
def test_unknown_names_are_told_the_nearest(name):
    with pytest.raises(OptionError, match=r"close: '(xo_deep|alexnet|resnet1)"):
        card(name)


def test_names_are_cards():
    for name in names():
        assert card(name).name == name


def test_every_error_has_one_root():
    assert all(issubclass(e, FeatvizError) for e in (DtypeError, FileError, OptionError, ShapeError, WeightsError))


def test_the_key_of_a_safetensors_file_begins_its_names(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"")
    fake, model, other = ModuleType("safetensors.torch"), TINY.build(), TINY.build()
    states = {"net": model, "net_ema": other}
    held = {f"{key}.{name}": x for key, net in states.items() for name, x in net.state_dict().items()}
    fake.load_file = lambda _: held
    monkeypatch.setitem(sys.modules, "safetensors.torch", fake)
    for key, net in states.items():
        assert torch.equal(TINY.load(tmp_path / "w.safetensors", key=key).weight, net.weight)
    with pytest.raises(WeightsError, match="holds no state dict under 'model'"):
        TINY.load(tmp_path / "w.safetensors", key="model")
