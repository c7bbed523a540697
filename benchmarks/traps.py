"""Whether what a way returns is right: against an oracle, on what capturing goes wrong with, and once compiled."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.ways import Kept, Way


def leaves(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if name and not list(module.children())]


def oracle(model: nn.Module, x: Tensor, layers: list[str]) -> Kept:
    """A clone of what each call of each layer returned, taken in a hook."""
    seen: Kept = {name: [] for name in layers}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, calls=calls: calls.append(tree_map_only(Tensor, Tensor.clone, output))
        )
        for name, calls in seen.items()
    ]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def same(a: Any, b: Any) -> bool:
    """Bit for bit, whatever the tensors are wrapped in."""
    a, b = tree_leaves(a), tree_leaves(b)
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def wrong(expected: Kept, kept: Kept) -> str:
    """Nothing, or of how many layers a call is missing, or is not what the layer returned."""
    lacking = {name for name, calls in expected.items() if len(calls) != len(kept.get(name, ()))}
    changed = {n for n, calls in expected.items() if n not in lacking and not all(map(same, calls, kept[n]))}
    if not lacking and not changed:
        return ""
    kinds = [f"{len(changed)} changed"] * bool(changed) + [f"{len(lacking)} lack calls"] * bool(lacking)
    return f"{len(lacking) + len(changed)} of {len(expected)} wrong ({', '.join(kinds)})"


def judge(way: Way, model: nn.Module, x: Tensor, layers: list[str], *, early: bool = False) -> str:
    """`right`, or how many layers are wrong."""
    expected = oracle(model, x, layers)
    with (way.early if early and way.early else way.enter)(model, x, layers) as run:
        first = wrong(expected, run.read(run.call()))
        again = wrong(expected, run.read(run.call()))  # with what it may have learnt
    return first or again or "right"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x))
        out += x
        return out


class Thrice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.relu(self.conv(self.relu(x))) - 0.1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x.mean(1))[0])


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))


def picture(size: int = 8) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def right(way: Way, model: nn.Module, layers: list[str] | None = None) -> str:
    return "right" if judge(way, model.eval(), picture(), layers or leaves(model)) == "right" else "wrong"


def state(model: nn.Module) -> set[str]:
    """What each module has of its own, and how many hooks."""
    return {key for m in model.modules() for key in (*vars(m), *(["hooks"] if m._forward_hooks else []))}


def as_it_was(way: Way, size: int) -> str:
    """With a picture that is too large the last layer raises."""
    model = small().eval()
    before = state(model)
    with way.enter(model, picture(size), leaves(model)) as run:
        try:
            run.call()
        except Exception:
            if size == 8:
                raise
    left = sorted(state(model) - before)
    return f"wrong ({', '.join(f'`{key}`' for key in left)} left)" if left else "right"


def prefixed(way: Way) -> str:
    """Asked for by the names of the model, not of the wrapper; the oracle as well."""
    model = small().eval()
    expected = oracle(model, picture(), leaves(model))
    with way.enter(nn.DataParallel(model), picture(), leaves(model)) as run:
        return "wrong" if wrong(expected, run.read(run.call())) else "right"


TRAPS: dict[str, Callable[[Way], str]] = {
    "conv before in-place ReLU": lambda way: right(way, nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(inplace=True))),
    "`out += identity`": lambda way: right(way, Residual()),
    "module called three times": lambda way: right(way, Thrice()),
    "tuple outputs (LSTM)": lambda way: right(way, Recurrent()),
    "plain names through a `module.` wrapper": prefixed,
    "model as it was, afterwards": lambda way: as_it_was(way, 8),
    "model as it was, after an exception in forward": lambda way: as_it_was(way, 9),
}


def once_compiled(way: Way) -> str:
    """What comes of a model that was compiled, and had run, before anyone wanted to see its layers."""
    torch._dynamo.reset()
    model = small().eval()
    expected = {f"_orig_mod.{name}": calls for name, calls in oracle(model, picture(), leaves(model)).items()}
    compiled = torch.compile(model)
    compiled(picture())
    with way.enter(compiled, picture(), list(expected)) as run:
        kept = run.read(run.call())
    if not any(kept.values()):
        return "silently empty"
    close = all(
        len(calls) == len(kept.get(name, ())) and all(map(torch.allclose, tree_leaves(calls), tree_leaves(kept[name])))
        for name, calls in expected.items()
    )  # not bit for bit: a compiled layer may round otherwise
    return "works" if close else "wrong"


def attempt(ask: Callable[[Way], str], way: Way) -> str:
    """The answer, or that there is none."""
    if not way.installed:
        return "not installed"
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            return ask(way)
    except Exception as error:
        return f"error ({type(error).__name__})"
