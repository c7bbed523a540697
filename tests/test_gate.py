"""The gate of public calls: what passes, what is refused in which words, and a short form of the fuzz."""

import gc
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torch_featviz as fv
from tests.test_raises import PUBLIC, named
from torch_featviz.errors import DeviceError, DtypeError, FeatvizError, OptionError
from torch_featviz.gate import check, check_floats, check_tensor, gate, gated

ATTACK = Path(__file__).parent.parent / "benchmarks" / "attack"
sys.path.insert(0, str(ATTACK))
import calls  # noqa: E402
from arguments import ODD  # noqa: E402

T = torch.rand(4, 1, 3, 3)
OF_A_KIND = {"DtypeError", "OptionError", "DeviceError"}  # of an argument of the wrong kind, which goes without saying


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (int, [0, -3, np.int64(2), 2**62]),
        (float, [0, 0.5, np.float32(2), Fraction(1, 3), float("nan")]),
        (bool, [True, False, 0, 1, np.bool_(True)]),
        (str, ["", "a\nb", np.str_("a")]),
        (Literal["a", "b"], ["a", "b"]),
        (Tensor, [T, T.bool(), T.half(), torch.tensor(1.0), nn.Parameter(T), T.to(torch.complex64)]),
        (nn.Module, [nn.ReLU(), nn.Sequential()]),
        (int | None, [None, 1]),
        (float | Tensor | None, [None, 0.5, T]),
        (Sequence[str], [[], ["a"], ("a", "b"), "ab", np.array(["a", "b"])]),
        (Sequence[int], [[1], range(3), np.arange(3), torch.arange(3), torch.Size([1, 2])]),
        (tuple[int, int], [(1, 2), [1, 2]]),
        (Mapping[str, float], [{}, {"a": 1}]),
        (Iterable[Any], [[1], iter([1]), T]),
        (Callable[[Any], Any], [len, nn.ReLU()]),
        (Callable[[], nn.Module], [nn.ReLU]),
        (fv.Scale | None, [None, fv.Scale()]),
        (Any, [None, 1, object()]),
    ],
)
def test_what_is_of_the_kind_passes(kind, values):
    for value in values:
        check("x", value, kind)


@pytest.mark.parametrize(
    ("kind", "value", "error", "words"),
    [
        (int, "2", OptionError, "x must be a whole number, got '2'."),
        (int, 2.0, OptionError, "x must be a whole number, got 2.0."),
        (int, True, OptionError, "x must be a whole number, got True."),
        (int, 2**70, OptionError, "x must be a number of 64 bits, got one of 71 bits."),
        (float, 10**400, OptionError, "x must be a number of 64 bits, got one of 1329 bits."),
        (float, "a", OptionError, "x must be a number, got 'a'."),
        (float, Fraction(10**400), OptionError, "x must be a number, got Fraction."),
        (float, 1j, OptionError, "x must be a number, got complex."),
        (bool, 2, OptionError, "x must be True or False, got 2."),
        (bool, T, OptionError, "x must be True or False, got a tensor of torch.float32."),
        (str, None, OptionError, "x must be a text, got None."),
        (Literal["a", "b"], "c", OptionError, "x must be one of 'a', 'b', got 'c'."),
        (Literal["a", "b"], ["a"], OptionError, "x must be one of 'a', 'b', got ['a']."),
        (Tensor, T.byte().numpy(), DtypeError, "x must be a tensor, got ndarray; torch.from_numpy makes"),
        (Tensor, np.ma.masked_array(T.numpy()), DtypeError, "x must be a tensor, got MaskedArray; torch.from_numpy"),
        (Tensor, [1.0], DtypeError, "x must be a tensor, got [1.0]."),
        (Tensor, T.to_sparse(), DtypeError, "x: expected a dense tensor, got torch.sparse_coo; use x.to_dense()"),
        (Tensor, torch.empty(1, device="meta"), DeviceError, "x: expected values, got a tensor on the meta device"),
        (Tensor, ODD["tensor quantised"](), DtypeError, "x: expected plain values, got torch.quint8"),
        (Tensor, T.to(torch.float8_e4m3fn), DtypeError, "x: expected values to compute with, got torch.float8_e4m3fn"),
        (Tensor, ODD["nested tensor"](), DtypeError, "x: expected a dense tensor, got a nested tensor"),
        (nn.Module, "net", DtypeError, "x must be a torch.nn.Module, got str: 'net'."),
        (int | None, "a", OptionError, "x must be a whole number, got 'a'."),
        (Tensor | None, 1, DtypeError, "x must be a tensor, got 1."),
        (int | str | None, 0.5, OptionError, "x must be a whole number, a text or None, got 0.5."),
        (Tensor | nn.Module, 1, DtypeError, "x must be a tensor or a torch.nn.Module, got 1."),
        (Sequence[str], ["a", None], OptionError, "x[1] must be a text, got None."),
        (Sequence[str] | None, {"a": 1}, DtypeError, "x must be a list or tuple, got {'a': 1}."),
        (Sequence[int], np.array(2), DtypeError, "x must be a list or tuple, got a value without axes."),
        (Sequence[int], torch.rand(2), OptionError, "x[0] must be a whole number, got 0."),
        (Mapping[str, int], [1], DtypeError, "x must be a mapping, got [1]."),
        (Mapping[str, int], {1: 1}, OptionError, "a key of x must be a text, got 1."),
        (Mapping[str, int], {"a": 0.5}, OptionError, "x['a'] must be a whole number, got 0.5."),
        (Iterable[Any], 3, DtypeError, "x must be something to iterate over, such as a DataLoader, got 3."),
        (Callable[[Any], Any], 3, DtypeError, "x must be a function, got 3."),
        (
            Callable[[Tensor], Tensor],
            nn.ReLU,
            DtypeError,
            "x: expected a function, got the class ReLU; pass an instance",
        ),
        (fv.Scale | None, "unit", OptionError, "x must be a Scale, got 'unit'."),
        (Path, 3, DtypeError, "x must be a Path, got 3."),
    ],
)
def test_what_is_not_is_refused(kind, value, error, words):
    with pytest.raises(error, match=f"^{re.escape(words)}"):
        check("x", value, kind)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, np.int64(3), 3),
        (float, np.float32(0.5), 0.5),
        (bool, np.bool_(True), True),
        (float | None, np.float64(2), 2.0),
        (float, Fraction(1, 2), 0.5),
    ],
)
def test_numbers_of_numpy_become_pythons(kind, value, expected):
    taken = check("x", value, kind)
    assert type(taken) is type(expected)
    assert taken == expected


@pytest.mark.parametrize("given", [np.array([2, 0]), torch.tensor([2, 0]), torch.tensor([2, 0]).byte()])
@pytest.mark.parametrize("kind", [Sequence[int], tuple[int, ...], Sequence[int] | int | None])
def test_several_numbers_become_a_list(kind, given):
    taken = check("x", given, kind)
    assert taken == [2, 0]
    assert {type(each) for each in taken} == {int}
    assert check("x", given, Sequence[int] | Tensor) is given


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
@pytest.mark.parametrize("kind", [Tensor, Tensor | None, Tensor | Sequence[float], float | Tensor])
def test_an_array_of_floats_becomes_a_tensor_of_its_own(kind, dtype):
    array = np.arange(24).reshape(2, 1, 3, 4).astype(dtype)[:, :, ::-1]
    array.flags.writeable = False
    taken = check("x", array, kind)
    assert torch.equal(taken, torch.tensor(array.tolist(), dtype=taken.dtype))
    assert taken.dtype.itemsize == array.itemsize
    taken.zero_()
    assert array.any()


def test_a_call_takes_arrays():
    array = T.numpy()
    assert torch.equal(fv.tile(array, ncols=np.int64(2)), fv.tile(T, ncols=2))
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    assert torch.equal(fv.probabilities(net, array, answer="logits"), fv.probabilities(net, T, answer="logits"))


def test_a_gated_function_is_the_function():
    @gate("free")
    def call(n: int, *more: str, free: int = 0, flag: bool = False, **rest: int) -> tuple:
        return n, more, free, flag, rest

    assert call(1, "a", free="any", flag=1, other="x") == (1, ("a",), "any", 1, {"other": "x"})
    with pytest.raises(OptionError, match="more must be a text, got 2"):
        call(1, "a", 2)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'n'"):
        call()
    with pytest.raises(TypeError, match="unexpected keyword argument 'm'"):
        gated(lambda n: n)(n=1, m=2)
    with pytest.raises(TypeError, match="of the function itself"):
        gated(_raise)()


def _raise():
    raise TypeError("of the function itself")


def test_floats():
    check_floats("x", T)
    for value in (T.to(torch.uint16), T.bool(), T.to(torch.complex64)):
        with pytest.raises(DtypeError, match="x must be floats, got torch"):
            check_floats("x", value)
    with pytest.raises(DtypeError, match="must be a tensor"):
        check_tensor("x", None)


@pytest.mark.parametrize("name", sorted(calls.targets()))
def test_a_public_call_refuses_odd_arguments_in_our_words(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.getaddrinfo", _offline)
    if name in calls.SLOW:
        pytest.skip("seconds each: in benchmarks/attack/calls.py")
    found = calls.targets()
    for number in range(3):
        result = calls.one([name], found, 0, number)
        assert result["how"] != "WRONG", result
        if result["how"] == "ours" and public_name(name) in PUBLIC:
            assert kinds_of(result["what"]) & (named(public_name(name)) | OF_A_KIND), result


def public_name(name):
    """The fuzz's `zoo.Moments().axis` is `Moments.axis`."""
    name = name.replace("()", "")
    name = name if name in PUBLIC else name.removeprefix("zoo.")
    return name if name in PUBLIC else name.replace("__call__", "forward")


def kinds_of(name):
    """An error's class by its name, and those that it is derived from."""
    todo = [FeatvizError]
    for kind in todo:
        todo += kind.__subclasses__()
    return {base.__name__ for kind in todo if kind.__name__ == name for base in kind.__mro__}


def _offline(*_args, **_keywords):
    raise OSError("no network here")


def test_the_fuzz_tells_an_error_that_is_not_ours():
    def own():
        raise FeatvizError("x")

    ways = {
        "fine": lambda: fv.tile(T),
        "ours": own,
        "python's": lambda: gated(own)(1),
        "model's own": lambda: fv.FeatureTap(nn.Linear(2, 3))(torch.rand(4)),
        "WRONG": lambda: fv.tile.__wrapped__(T, ncols="2"),
    }
    for name, call in ways.items():
        assert calls.outcome(raised(call)) == name


@pytest.mark.parametrize(
    ("code", "told", "how"),
    [
        (0, "", "fine"),
        (1, "computing\nfeatviz: no layer 'a'.\n", "ours"),
        (2, "usage: featviz", "ours"),
        (1, "", "WRONG"),
        (3, "featviz: x", "WRONG"),
        (1, "Traceback (most recent call last):\nfeatviz: x", "WRONG"),
        (1, "featviz: \x1b[31m", "WRONG"),
    ],
)
def test_the_fuzz_tells_a_command_that_ends_otherwise(code, told, how, tmp_path, monkeypatch):
    def main(typed):
        sys.stderr.write(told)
        if code == 2:
            raise SystemExit(code)
        return code

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calls.words, "main", main)
    monkeypatch.setattr(calls.words, "files", lambda: None)
    assert calls.outcome(raised(lambda: calls.words.run(["layers"])), command=True) == how


def test_the_fuzz_knows_each_option_of_each_command():
    """What is typed is read from the parser: a new option is in it."""
    rng = calls.random.Random(0)
    typed = {word.partition("=")[0] for _ in range(300) for word in calls.words.words("maps", rng)[0]}
    assert typed >= {"maps", "--image", "--layer", "--weights", "--random", "--size", "--top", "--one-scale", "--out"}


def raised(call):
    try:
        call()
    except Exception as error:
        return error
    return None


def test_a_check_holds_nothing_of_its_caller():
    """Errors of forms that do not fit keep no frames alive: whatever the caller has would stay on its device."""

    @gate()
    def takes(size: Sequence[int] | int | None = None) -> Any:
        return size

    class Thing:
        pass

    def called():
        thing = Thing()
        assert takes(3) == 3
        return weakref.ref(thing)

    gc.disable()
    try:
        assert called()() is None
    finally:
        gc.enable()


def test_a_compiled_model_has_a_forward():
    net = torch.compile(torch.nn.Linear(2, 2), backend="eager")
    images, labels = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    assert len(fv.zoo.evaluate(net, [(images, labels)]).logits) == 4
    with pytest.raises(DtypeError, match="model must have a forward, got ModuleList"):
        fv.zoo.evaluate(torch.nn.ModuleList(), [(images, labels)])
