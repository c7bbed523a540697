"""Oracles for capture, written differently: hooks that clone. Streams of outputs for the figures kept of them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from torch_featviz.capture.reduce import Several


def clone(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: clone(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [clone(item) for item in value]
    return value


def hooked(model: nn.Module, call: Callable[[], Any]) -> tuple[Any, list[tuple[str, Any]]]:
    """What `call()` returns, and a clone of what every leaf call of `model` returned, in order.

    A convolution is a leaf, too, if there is a padding in it, and so is an attention.
    """
    kinds = ("Conv2dStaticSamePadding", "MultiheadAttention", "ShiftedWindowAttention")
    seen: list[tuple[str, Any]] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.append((name, clone(output))))
        for name, module in model.named_modules()
        if not list(module.children()) or type(module).__name__ in kinds
    ]
    try:
        return call(), seen
    finally:
        for handle in handles:
            handle.remove()


def same(a: Any, b: Any) -> bool:
    """Bit for bit, NaN equal to NaN; tuples, lists and dicts item by item."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return isinstance(b, (tuple, list)) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture(name="hooked")
def hooked_fixture() -> Any:
    return hooked


@pytest.fixture(scope="session")
def oracles() -> Any:
    return hooked, same


@pytest.fixture(name="same")
def same_fixture() -> Any:
    return same


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), -float("inf"), 3e-42, 1e-25, -7e30, 65504.0]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool]


@st.composite
def batches(draw: Any, min_axes: int = 1, max_axes: int = 5, axis: int = 1) -> list[Tensor]:
    """Outputs of one layer: equal but for the first axis, which may be empty; with odd values in some."""
    shape = draw(st.lists(st.integers(1, 4), min_size=min_axes, max_size=max_axes))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    location, spread = draw(st.sampled_from([(0, 1), (1e4, 1e-2), (-3, 40), (0, 0), (5, 0), (0, 1e-24), (0, 1e24)]))
    odd = draw(st.sampled_from([0.0, 0.0, 0.2, 1.0]))
    found = []
    for size in draw(st.lists(st.integers(0, 6), min_size=1, max_size=5)):
        values = location + spread * rng.standard_normal([size, *shape[1:]])
        values = np.where(rng.random(values.shape) < odd, rng.choice(SPECIAL, values.shape), values)
        if not dtype.is_floating_point:
            values = np.nan_to_num(values, nan=0, posinf=0, neginf=0).clip(-100, 100)
        found.append(torch.from_numpy(np.asarray(values)).to(dtype))
    return found


def compiled(reducer: Any, outputs: list[Tensor], kind: str = "inductor") -> tuple[Any, int]:
    """A fresh reducer updated within a compiled forward, and how many graphs that took."""
    torch._dynamo.reset()
    backend = CompileCounterWithBackend(kind)
    reducer = reducer.fresh()

    def forward(values: Tensor) -> Tensor:
        doubled = values * 2
        reducer.update(doubled)
        return doubled + 1

    forward = torch.compile(forward, backend=backend, fullgraph=True, dynamic=False)
    for output in outputs:
        assert same(forward(output), output * 2 + 1)
        figures(reducer)  # reading in between must not cost a graph
    return reducer, backend.frame_count


def as_float(tensors: list[Tensor]) -> Any:
    """All in one float64 array."""
    return np.concatenate([tensor.double().numpy() for tensor in tensors])


def fed(reducer: Any, outputs: list[Tensor]) -> Any:
    """A fresh reducer that has seen `outputs`."""
    reducer = reducer.fresh()
    for output in outputs:
        reducer.update(output)
    return reducer


def figures(reducer: Any) -> dict[str, Any]:
    """Every public figure of a reducer."""
    if isinstance(reducer, Several):
        return {f"{i}.{name}": figure for i, part in enumerate(reducer) for name, figure in figures(part).items()}
    names = [name for name, kind in vars(type(reducer)).items() if isinstance(kind, property) and name != "settings"]
    return {name: torch.as_tensor(getattr(reducer, name)) for name in names}


def check_moments(moments: Any, columns: Any) -> None:
    """Against `columns`: one float64 array per channel, of all values."""
    for i, values in enumerate(columns):
        finite = values[np.isfinite(values)]
        assert moments.count[i] == finite.size
        assert moments.nan[i] == np.isnan(values).sum()
        assert moments.inf[i] == np.isinf(values).sum()
        assert moments.zero_share[i] == pytest.approx((values == 0).mean(), rel=1e-15)
        if not finite.size:
            assert torch.stack([moments.mean, moments.std, moments.min, moments.max])[:, i].isnan().all()
            assert not moments.dead[i]
            continue
        assert moments.min[i] == finite.min()
        assert moments.max[i] == finite.max()
        assert moments.dead[i] == (finite.max() <= 0)
        peak = np.abs(finite).max() or 1.0  # else float64 itself cannot square 1e-200
        std = (finite / peak).std() * peak if np.ptp(finite) else 0.0
        assert float(moments.std[i]) == pytest.approx(std, rel=1e-5, abs=1e-30)
        assert float(moments.mean[i]) == pytest.approx(finite.mean(), rel=1e-12, abs=1e-6 * std)


def agree(a: Any, b: Any, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Raise unless all figures of both are equal; a mean holds to a share of the standard deviation."""
    a, b = figures(a), figures(b)
    for name in a:
        near = atol
        if name.endswith("mean") and rtol:
            near += rtol * float(b[name.removesuffix("mean") + "std"].nan_to_num(0.0, 0.0).max())
        if name.endswith("whole") and rtol:  # finite, mean, std, ...
            share = rtol * float(b[name][2].nan_to_num(0.0, 0.0))
            torch.testing.assert_close(a[name][1], b[name][1], rtol=rtol, atol=atol + share, equal_nan=True)
            a[name][1] = b[name][1] = 0.0
        torch.testing.assert_close(
            a[name], b[name], rtol=rtol, atol=near, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="session")
def streams() -> SimpleNamespace:
    return SimpleNamespace(
        batches=batches,
        as_float=as_float,
        fed=fed,
        figures=figures,
        agree=agree,
        compiled=compiled,
        check_moments=check_moments,
    )
