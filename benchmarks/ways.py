"""Ways to keep what the layers of a network return, each as its own documentation shows it, behind one signature."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import torch_featviz as fv

Kept = dict[str, list[Any]]


class Run(NamedTuple):
    """A way at work on one model: `call` is one forward and is what gets timed; `read` names what it kept."""

    call: Callable[[], Any]
    read: Callable[[Any], Kept]  # layer name -> what each of its calls returned


class Way(NamedTuple):
    name: str
    package: str
    enter: Callable[[nn.Module, Tensor, list[str]], AbstractContextManager[Run]]
    inside: str  # what one timed call does
    kept: bool = False  # set up once, for any number of forwards
    early: Callable[[nn.Module, Tensor, list[str]], AbstractContextManager[Run]] | None = None  # its own early stop

    @property
    def installed(self) -> bool:
        return self.version != "not installed"

    @property
    def version(self) -> str:
        try:
            return version(self.package)
        except PackageNotFoundError:
            return "in this checkout" if self.package == "torch_featviz" else "not installed"


def plain(values: dict[str, Any]) -> Kept:
    return {name: [value] for name, value in values.items()}


def named(acts: fv.Activations, layers: list[str] | None) -> Kept:
    return plain(dict(acts)) if layers is None else {name: acts.calls(name) for name in layers}


def unwrapped(name: str) -> str:
    return name.removeprefix("_orig_mod.")  # fx and torchlens work on the model under a compiled one


@contextmanager
def featviz_kept(model: nn.Module, x: Tensor, layers: list[str] | None, **options: bool) -> Iterator[Run]:
    with fv.capture(model, layers, **options) as acts:
        yield Run(lambda: model(x), lambda _output: named(acts, layers))


@contextmanager
def featviz(model: nn.Module, x: Tensor, layers: list[str] | None, **options: bool) -> Iterator[Run]:
    def call() -> Any:
        with fv.capture(model, layers, **options) as acts:
            model(x)
        return acts

    yield Run(call, lambda acts: named(acts, layers))


def featviz_stop(model: nn.Module, x: Tensor, layers: list[str]) -> AbstractContextManager[Run]:
    return featviz(model, x, layers, stop=True)


def hook(modules: dict[str, nn.Module], kept: dict[nn.Module, Any]) -> list[Any]:
    def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
        kept[module] = output

    return [module.register_forward_hook(keep) for module in modules.values()]


@contextmanager
def hooks_kept(model: nn.Module, x: Tensor, layers: list[str]) -> Iterator[Run]:
    kept: dict[nn.Module, Any] = {}
    modules = {name: model.get_submodule(name) for name in layers}
    handles = hook(modules, kept)
    try:
        yield Run(lambda: model(x), lambda _output: {n: [kept[m]] for n, m in modules.items() if m in kept})
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def hooks(model: nn.Module, x: Tensor, layers: list[str]) -> Iterator[Run]:
    modules = {name: model.get_submodule(name) for name in layers}

    def call() -> dict[nn.Module, Any]:
        kept: dict[nn.Module, Any] = {}
        handles = hook(modules, kept)
        try:
            model(x)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    yield Run(call, lambda kept: {n: [kept[m]] for n, m in modules.items() if m in kept})


@contextmanager
def fx(model: nn.Module, x: Tensor, layers: list[str]) -> Iterator[Run]:
    from torchvision.models.feature_extraction import create_feature_extractor  # noqa: PLC0415

    extractor = create_feature_extractor(model, return_nodes=layers)
    yield Run(lambda: extractor(x), plain)


def fx_nodes(model: nn.Module, x: Tensor, _layers: list[str]) -> AbstractContextManager[Run]:
    from torchvision.models.feature_extraction import get_graph_node_names  # noqa: PLC0415

    return fx(model, x, get_graph_node_names(model)[1])


@contextmanager
def fx_compiled(model: nn.Module, x: Tensor, layers: list[str]) -> Iterator[Run]:
    """Of the model under the compiled one, compiled anew."""
    with fx(model.get_submodule("_orig_mod"), x, [unwrapped(name) for name in layers]) as run:
        call = torch.compile(run.call)
        yield Run(call, lambda values: plain({f"_orig_mod.{name}": value for name, value in values.items()}))


@contextmanager
def captum(model: nn.Module, x: Tensor, layers: list[str]) -> Iterator[Run]:
    from captum.attr import LayerActivation  # noqa: PLC0415

    activation = LayerActivation(model, [model.get_submodule(name) for name in layers])
    yield Run(lambda: activation.attribute(x), lambda values: plain(dict(zip(layers, values, strict=True))))


@contextmanager
def nnsight(model: nn.Module, x: Tensor, layers: list[str]) -> Iterator[Run]:
    from nnsight import NNsight  # noqa: PLC0415

    wrapped, paths = NNsight(model), [f"model.{name}" for name in layers]

    def call() -> Any:
        with wrapped.trace(x) as tracer:
            cache = tracer.cache(modules=paths)
        return cache  # noqa: RET504 - the block is no Python block: nnsight reads its source and runs it elsewhere

    def read(cache: Any) -> Kept:
        views = {path.removeprefix("model."): cache[path] for path in cache.keys()}  # noqa: SIM118 - no mapping
        return {name: [view.output] if len(view) == 1 else view.output for name, view in views.items()}

    yield Run(call, read)


@contextmanager
def nnsight_stop(model: nn.Module, x: Tensor, layers: list[str]) -> Iterator[Run]:
    from nnsight import NNsight, save  # noqa: PLC0415

    wrapped = NNsight(model)
    layer = {envoy.path: envoy for envoy in wrapped.modules()}[f"model.{layers[0]}"]

    def call() -> Any:
        with wrapped.trace(x) as tracer:
            value = save(layer.output)
            tracer.stop()
        return value

    yield Run(call, lambda value: {layers[0]: [value]})


@contextmanager
def torchlens(model: nn.Module, x: Tensor, layers: list[str], **options: Any) -> Iterator[Run]:
    """Torch's functions stay wrapped after the first trace, also for the bare forward; put back at the end."""
    import torchlens as tl  # noqa: PLC0415
    from torchlens.backends.torch.wrappers import unwrap_torch  # noqa: PLC0415

    capture = tl.options.CaptureOptions(**options)
    try:
        yield Run(
            lambda: tl.trace(model, x, capture=capture),
            lambda log: {n: [call.outs for call in log.modules[unwrapped(n)].calls.values()] for n in layers},
        )
    finally:
        unwrap_torch()


def torchlens_stop(model: nn.Module, x: Tensor, layers: list[str]) -> AbstractContextManager[Run]:
    return torchlens(model, x, layers, layers_to_save=layers, stop_after=layers[0])


@contextmanager
def torchlens_record(model: nn.Module, x: Tensor, layers: list[str], **options: Any) -> Iterator[Run]:
    """Operations and the modules they ran in: what a module returned is taken to be its last operation."""
    import torchlens as tl  # noqa: PLC0415
    from torchlens.backends.torch.wrappers import unwrap_torch  # noqa: PLC0415

    def read(recording: Any) -> Kept:
        last: dict[str, dict[int, Any]] = {unwrapped(name): {} for name in layers}
        for record in recording.records:
            for frame in record.ctx.module_stack:
                if frame.address in last:
                    last[frame.address][frame.pass_index] = record.ram_payload
        return {name: list(last[unwrapped(name)].values()) for name in layers}

    options.setdefault("save", lambda _context: True)
    try:
        yield Run(lambda: tl.record(model, x, **options), read)
    finally:
        unwrap_torch()


def torchlens_halt(model: nn.Module, x: Tensor, layers: list[str]) -> AbstractContextManager[Run]:
    import torchlens as tl  # noqa: PLC0415

    names = [name for name, _ in model.named_modules()]
    following = next(n for n in names[names.index(layers[0]) :] if not f"{n}.".startswith(f"{layers[0]}."))
    return torchlens_record(model, x, layers, save=tl.in_module(layers[0]), halt=tl.in_module(following))


@contextmanager
def torchextractor(model: nn.Module, x: Tensor, layers: list[str]) -> Iterator[Run]:
    from torchextractor import Extractor  # noqa: PLC0415

    extractor = Extractor(model, layers)
    try:
        yield Run(lambda: extractor(x)[1], plain)
    finally:
        for handle in extractor.hook_handles:
            handle.remove()


OURS = (
    Way("torch_featviz, block kept open", "torch_featviz", featviz_kept, "a forward inside an open block", kept=True),
    Way(
        "torch_featviz, a block for each forward",
        "torch_featviz",
        featviz,
        "the block and a forward",
        early=featviz_stop,
    ),
)
PEERS = (
    Way("hooks, kept registered", "torch", hooks_kept, "a forward", kept=True),
    Way("hooks, put on and taken off", "torch", hooks, "registering, a forward, removing"),
    Way("torchvision create_feature_extractor", "torchvision", fx, "a forward of the fx graph", kept=True, early=fx),
    Way("captum LayerActivation", "captum", captum, "one attribute() for the list of layers"),
    Way("nnsight", "nnsight", nnsight, "a trace with a cache of the layers", early=nnsight_stop),
    Way("torchlens trace", "torchlens", torchlens, "a new trace of every operation", early=torchlens_stop),
    Way("torchlens record", "torchlens", torchlens_record, "a new recording, not yet read", early=torchlens_halt),
    Way("torchextractor", "torchextractor", torchextractor, "a forward of the extractor", kept=True),
)
FX_COMPILED = Way("fx of the bare model, compiled anew", "torchvision", fx_compiled, "a forward", kept=True)


def ops_kept(model: nn.Module, x: Tensor, _layers: list[str]) -> AbstractContextManager[Run]:
    return featviz_kept(model, x, None, ops=True)


def ops(model: nn.Module, x: Tensor, _layers: list[str]) -> AbstractContextManager[Run]:
    return featviz(model, x, None, ops=True)


FUNCTIONAL = (
    Way("torch_featviz, ops=True, block kept open", "torch_featviz", ops_kept, "a forward", kept=True),
    Way("torch_featviz, ops=True, a block for each forward", "torch_featviz", ops, "the block and a forward"),
    Way("torchvision create_feature_extractor, all nodes", "torchvision", fx_nodes, "a forward", kept=True),
    *(way for way in PEERS if way.package == "torchlens"),
)


def all_kept(way: Way, run: Run, result: Any) -> list[Any]:
    """All that one call kept, whatever its name."""
    if way.package == "torch_featviz":
        return [call for calls in run.read(result).values() for call in calls]
    if way.package == "torchvision":
        return list(result.values())
    if way.enter is torchlens_record:
        return [record.ram_payload for record in result.records]
    return [result[label].out for label in result.layer_labels]
