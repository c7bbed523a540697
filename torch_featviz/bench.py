"""Measure the cost of a capture on your own model, as ratios that are robust on a noisy machine."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, kineto_available, profile

from torch_featviz.displayed import Displayed
from torch_featviz.launching import gpu
from torch_featviz.model.copier import copied
from torch_featviz.model.layers import Layers
from torch_featviz.model.values import map_tensors, tensors
from torch_featviz.torch_private import (
    READS_A_VALUE,
    UNKNOWN_VALUES,
    FakeTensor,
    FakeTensorMode,
    TorchDispatchMode,
    returns_views,
    unset_fake_temporarily,
)

from .capture import Activations, capture
from .capture.inplace import memory_of
from .errors import LayerError, OptionError
from .gate import gated
from .model.run import device_told
from .model.untouched import Kept

__all__ = [
    "Added",
    "Launches",
    "Overhead",
    "Ratio",
    "added",
    "launches",
    "overhead",
    "paired",
    "peak_memory",
    "settled",
]

T = TypeVar("T")


class Ratio(NamedTuple):
    """Time of `a` divided by time of `b`: the median and its 95 % confidence interval.

    Example:
        >>> ratio = Ratio(1.04, 1.03, 1.06)
        >>> ratio.within(1.05), ratio.within(1.02)
        (True, False)
    """

    median: float
    low: float
    high: float

    @classmethod
    @gated
    def of(cls, ratios: list[float]) -> Ratio:
        """Of ratios that were measured.

        Raises:
            OptionError: there is none.
        """
        if not len(ratios):
            raise OptionError("ratios must be one at least, got none.")
        return cls(*_median(ratios))

    @gated
    def within(self, budget: float) -> bool:
        """Return whether the ratio is within `budget`; False if it is above with 97.5 % confidence."""
        return self.low <= budget

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


class Added(NamedTuple):
    """Extra seconds of one way compared with another: the median and its 95 % confidence interval.

    Example:
        >>> Added(2e-4, 1e-4, 3e-4).micro(parts=100)
        '2.00 (1.00 to 3.00) us'
    """

    median: float
    low: float
    high: float

    @gated
    def micro(self, parts: int = 1) -> str:
        """Format in microseconds, divided by `parts`.

        Raises:
            OptionError: `parts` is below 1.
        """
        if parts < 1:
            raise OptionError(f"parts must be at least 1, got {parts}.")
        return "{:.2f} ({:.2f} to {:.2f}) us".format(*(1e6 * value / parts for value in self))


@gated
def paired(
    a: Callable[[], object], b: Callable[[], object], *, rounds: int = 15, timer: Callable[[], float] = perf_counter
) -> Ratio:
    """Time `a` against `b` in one process: after a warm-up, without garbage collection, in alternating order.

    Each ratio compares neighbouring runs, so a machine that slows down slows down both.

    Args:
        rounds: number of timings of each. Below 6 the interval is just the observed range, with less confidence.
        timer: a clock, in seconds.
    Raises:
        OptionError: `rounds` is below 1, or `timer` returns no seconds, or the same before `b` and after it.
    Example:
        >>> now = 0.0
        >>> def work(seconds):
        ...     global now
        ...     now += seconds
        >>> print(paired(lambda: work(3), lambda: work(2), timer=lambda: now))
        1.5 (1.5 to 1.5)
    """
    times = _alternate([_timed(a, timer), _timed(b, timer)], rounds)
    if any(of_b == 0 for _, of_b in times):
        raise OptionError("b takes no time by this timer; let it do more, or pass a finer timer.")
    return Ratio.of([of_a / of_b for of_a, of_b in times])


@gated
def added(
    base: Callable[[], object],
    *ways: Callable[[], object],
    rounds: int = 15,
    timer: Callable[[], float] = perf_counter,
) -> list[Added]:
    """Measure how much longer each of `ways` takes than `base`; timed as in `paired`.

    Raises:
        OptionError: `rounds` is below 1, or `timer` returns no seconds.
    Example:
        >>> now = 0.0
        >>> def work(seconds):
        ...     global now
        ...     now += seconds
        >>> [cost.median for cost in added(lambda: work(1), lambda: work(2), lambda: work(5), timer=lambda: now)]
        [1.0, 4.0]
    """
    times = _alternate([_timed(call, timer) for call in (base, *ways)], rounds)
    return [Added(*_median([row[i] - row[0] for row in times])) for i in range(1, len(ways) + 1)]


def interleaved(calls: list[Callable[[], object]], rounds: int | None = None) -> list[list[float]]:
    """Seconds that each of several calls takes, timed in turns: a row for each round, a column for each call.

    Args:
        calls: each is run once before.
        rounds: None for as many as fit in two seconds, from 15 to 401.
    Raises:
        OptionError: `rounds` is below 1.
    """
    ways = [_timed(call) for call in calls]
    return _alternate(ways, _rounds_for(*ways) if rounds is None else rounds)


@gated
def settled(measure: Callable[[], T], within: Callable[[T], bool]) -> T:
    """Call `measure` up to three times, until the result is `within` its budget.

    A busy machine spoils one measurement; a regression spoils all three.

    Example:
        >>> said = iter([1.3, 1.01, 1.2])
        >>> settled(lambda: next(said), lambda ratio: ratio < 1.05)
        1.01
    """
    result = measure()
    for _ in range(2):
        if within(result):
            break
        result = measure()
    return result


@dataclass(frozen=True, repr=False)
class Overhead(Displayed):
    """The cost of a capture on one model, as `overhead` measured it.

    Attributes:
        ratio: time of a captured forward, divided by that of the bare forward.
        per_layer: extra time of the forward, per call of a captured layer.
        calls: number of such calls in one forward.
        bytes_held: memory that the capture keeps alive, beyond the forward's arguments and result and the model's
            parameters and buffers. Each storage counts once, with its full size. In grad mode the autograd graph, which
            the block also keeps, is not included.
        peak_over_bare: extra peak memory of the captured forward, in bytes; None if the device does not report it.
        device: the device of the measurement.
    """

    ratio: Ratio
    per_layer: Added
    calls: int
    bytes_held: int
    peak_over_bare: int | None
    device: str

    @property
    def us_per_layer(self) -> float:
        """Median of `per_layer`, in microseconds."""
        return 1e6 * self.per_layer.median

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain numbers, for a log or JSON; `us_per_layer` comes with its interval."""
        micro = Added(*(1e6 * value for value in self.per_layer))
        kept = {name: value for name, value in asdict(self).items() if name != "per_layer"}
        return {**kept, "ratio": self.ratio._asdict(), "us_per_layer": micro._asdict()}

    def __str__(self) -> str:
        peak = "" if self.peak_over_bare is None else f", peak {self.peak_over_bare / 1e6:+.3g} MB"
        return (
            f"{self.ratio} of the bare forward, {self.per_layer.micro()} for each of {self.calls} layer calls, "
            f"{self.bytes_held / 1e6:.3g} MB held{peak}"
        )


@gated
def overhead(
    model: nn.Module, inputs: Any, layers: Layers = None, *, rounds: int | None = None, **options: Any
) -> Overhead:
    """Measure how much capturing `layers` slows `model` down, compared with its bare forward.

    Both alternate in one process. In each round two forwards run and the second is timed; a captured forward thus
    includes freeing the outputs of the previous one, as in a loop over batches. Entering and leaving the block, and the
    first forward, which is slower, are not timed.

    Grad mode, autocast, threads and train or eval mode are the caller's. Buffers and random states are restored. A
    compiled model runs uncompiled inside the block where `ops=True` needs that, and is compared with its compiled self.

    Args:
        inputs: the model's argument, or a tuple of its arguments.
        layers: as for `capture`.
        rounds: number of timings of each side; None for as many as fit into two seconds, from 15 to 401.
        options: as for `capture`.
    Raises:
        LayerError: `model` has no such layer, or none of them ran.
        OptionError: `rounds` is below 1.
        DeviceError: the inputs are on another device than the model.

    On a GPU each timing ends with a synchronisation, and the device's peak memory statistics are reset; allocations of
    other threads would count too.

    Example:
        >>> cost = overhead(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8), "0", rounds=1)
        >>> cost.calls, cost.bytes_held  # 4 maps of 6 x 6, in float32
        (1, 576)
    """
    block = capture(model, layers, **options)
    forward, device = _forward(model, inputs)
    with Kept(model).restored():
        with device_told(model, inputs):
            forward()  # bare first: what dynamo has met with compiling switched off, it will never compile
        with block as acts:
            forward()
            result = forward()
            calls, held = len(acts), _bytes_held(acts, [result, inputs, *model.parameters(), *model.buffers()])
        if not calls:
            absent = ", ".join(acts.not_run) or "they are never called; only their weights are used"
            raise LayerError(f"no captured layer ran in this forward: {absent}.")
        del acts, result

        def bare() -> float:
            forward()
            return _timed(forward)()

        def captured() -> float:
            with block:
                forward()
                return _timed(forward)()

        with block:
            peak = peak_memory(forward, device=device)
        bare_peak = peak_memory(forward, device=device)
        rounds = _rounds_for(captured, bare) if rounds is None else rounds
        times = _alternate([captured, bare], rounds)
    return Overhead(
        ratio=Ratio(*_median([inside / outside for inside, outside in times])),
        per_layer=Added(*_median([(inside - outside) / calls for inside, outside in times])),
        calls=calls,
        bytes_held=held,
        peak_over_bare=None if peak is None or bare_peak is None else peak - bare_peak,
        device=str(device),
    )


class Launches(NamedTuple):
    """Kernel launches that a capture adds to a forward on a GPU.

    Attributes:
        bare: kernels, copies and fills of the bare forward.
        added: launches that the capture adds.
        waits: how often the CPU waits for the device because of the capture.
    """

    bare: int
    added: int
    waits: int


@gated
def launches(model: nn.Module, inputs: Any, layers: Layers = None, **options: Any) -> Launches:
    """Count the GPU launches that capturing `layers` adds to one forward of `model`. It works without a GPU too.

    On a GPU the profiler counts. Elsewhere a copy of the model runs on tensors that report a GPU as their device and
    hold no values: each operator counts as one launch unless it returns a view or uninitialised memory (a few of
    PyTorch's operators launch several kernels). This count is the same on all machines and can be asserted in a test.
    The second forward of the block is counted; the first one costs more.

    Args:
        inputs: the model's argument, or a tuple of its arguments.
        layers: as for `capture`.
        options: as for `capture`.
    Raises:
        LayerError: `model` has no such layer.
        OptionError: without a GPU, the forward takes tensors that are not plain, or depends on values that the tensors
            do not hold.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
        >>> launches(net, torch.zeros(1, 3, 8, 8))  # a copy, before the ReLU writes
        Launches(bare=2, added=1, waits=0)
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    on_gpu = any(tensor.is_cuda for tensor in (*tensors(arguments), *model.parameters()))
    with Kept(model).restored(), (_profiled if on_gpu else _on_fake_gpu)(model, arguments) as (net, given, counted):
        bare = counted(lambda: net(*given))
        with capture(net, layers, **options):
            counted(lambda: net(*given))
            inside = counted(lambda: net(*given))
    return Launches(bare.launches, inside.launches - bare.launches, inside.waits - bare.waits)


class _Counted(NamedTuple):
    launches: int
    waits: int


_Counting: TypeAlias = tuple[nn.Module, Any, Callable[[Callable[[], object]], _Counted]]
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


@contextmanager
def _profiled(model: nn.Module, arguments: tuple[Any, ...]) -> Iterator[_Counting]:
    def counted(call: Callable[[], object]) -> _Counted:
        torch.cuda.synchronize()
        with _quiet_profiler(), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            call()
        events = seen.events() or []
        on_device = [event for event in events if event.device_type.name == "CUDA"]
        return _Counted(len(on_device), sum(event.name in _WAITS for event in events))

    model(*arguments)
    yield model, arguments, counted


@contextmanager
def _on_fake_gpu(model: nn.Module, arguments: tuple[Any, ...]) -> Iterator[_Counting]:
    def counted(call: Callable[[], object]) -> _Counted:
        with counter:
            counter.launches = counter.waits = 0
            call()
        return _Counted(counter.launches, counter.waits)

    counter = _Counter()
    with FakeTensorMode(allow_non_fake_inputs=True), gpu.counting(counter.launched):

        def on_gpu(tensor: Tensor) -> Tensor:
            if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
                raise OptionError("launches on nested, sparse or quantised tensors can be counted only on a GPU.")
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
            return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

        try:
            yield copied(model, partial(map, on_gpu), evaluates=False), map_tensors(on_gpu, arguments), counted
        except UNKNOWN_VALUES as error:
            raise OptionError(
                f"this forward depends on tensor values, so its launches can be counted only on a GPU: {error}"
            ) from error


class _Counter(TorchDispatchMode):
    """Counts the operators that launch something on a GPU, and those that wait for one.

    What is copied from the GPU is zeros, with which the CPU then really computes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = self.waits = 0

    def launched(self) -> None:
        """A kernel of this package, or a table that is sent to it."""
        self.launches += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(tensors((args, kwargs)))
        makes = torch.device(kwargs.get("device") or "cpu").type
        if makes == "cpu" and not any(isinstance(tensor, FakeTensor) for tensor in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is READS_A_VALUE:
            self.launched()
            self.waits += 1
            with unset_fake_temporarily():
                return torch.zeros((), dtype=given[0].dtype, device="cpu").item()
        result = func(*args, **kwargs)
        if _name(func).startswith("_foreach_") and len({tensor.dtype for tensor in given}) > 1:
            self.launches += len(args[0])  # they go one by one
        elif not (returns_views(func) or _name(func) in _LAUNCH_NOTHING):
            self.launched()
        if any(tensor.device.type == "cpu" for tensor in tensors(result)):
            self.waits += 1
            return map_tensors(_zeros, result)
        return result


def _zeros(tensor: Tensor) -> Tensor:
    with unset_fake_temporarily():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")


def _name(operator: Any) -> str:
    return str(operator).split(".")[1]


_LAUNCH_NOTHING = {  # they make or change what describes memory, and write none
    *("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"),
    *("_unsafe_view", "_reshape_alias", "device", "set_", "resize_", "record_stream"),
}


def peak_memory(call: Callable[[], object], *, device: str | torch.device = "cpu") -> int | None:
    """Measure the peak of tensor memory during `call`, in bytes, beyond what was allocated before.

    On the CPU it is read from the profiler's allocation events: scratch memory of operators is included, memory that a
    library such as oneDNN allocates itself is not. On CUDA it is read from the allocator. None if neither is available.

    Example:
        >>> x = torch.zeros(1000, 1000)
        >>> peak_memory(lambda: x.exp().cos().sin())  # two of 4 MB at a time
        8000000
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not kineto_available():
        return None
    most = now = 0
    alive: dict[int, int] = {}
    for address, size in _allocations(call):
        if size > 0:
            alive[address] = size
            now += size
            most = max(most, now)
        else:
            now -= alive.pop(address, 0)  # what was there before is none of ours
    return most


@contextmanager
def captured_forward(model: nn.Module, inputs: Any, layers: Layers, **options: Any) -> Iterator[Callable[[], Any]]:
    """Inside the block, a call that runs `model` to its end, captured; afterwards the model is as it was."""
    forward, _ = _forward(model, inputs)
    with Kept(model).restored(), capture(model, layers, **options):
        yield forward


def _forward(model: nn.Module, inputs: Any) -> tuple[Callable[[], Any], torch.device]:
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    devices = [tensor.device for tensor in (*tensors(arguments), *model.parameters())]
    device = next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
    if device.type == "cpu":
        return lambda: model(*arguments), device

    def forward() -> Any:
        result = model(*arguments)
        torch.accelerator.synchronize(device)
        return result

    return forward, device


def _bytes_held(acts: Activations, others: list[Any]) -> int:
    """Of the storages behind `acts`, those that nothing in `others` holds."""
    sizes = {memory_of(tensor): tensor for tensor in tensors(list(acts.values()))}
    for tensor in tensors(others):
        sizes.pop(memory_of(tensor), None)
    sizes.pop(None, None)
    return sum(tensor.untyped_storage().nbytes() for tensor in sizes.values())


def _allocations(call: Callable[[], object]) -> list[tuple[int, int]]:
    """Address and bytes (less than 0 when freed) of each allocation on the CPU during `call`, in order of time."""
    with _quiet_profiler(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        seen.export_chrome_trace(str(trace))
        events = json.loads(trace.read_bytes())["traceEvents"]
    memory = [event for event in events if event["name"] == "[memory]" and event["args"]["Device Type"] == 0]
    memory.sort(key=lambda event: event["ts"])
    return [(event["args"]["Addr"], event["args"]["Bytes"]) for event in memory]


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Its first use in a process would say on stderr that there is no GPU."""
    asked = "KINETO_LOG_LEVEL" in os.environ
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        yield
    finally:
        if not asked:
            del os.environ["KINETO_LOG_LEVEL"]


def _rounds_for(*ways: Callable[[], float]) -> int:
    start = perf_counter()
    for way in ways:
        way()
    return min(401, max(15, int(2.0 / (perf_counter() - start))))


def _median(values: list[float]) -> tuple[float, float, float]:
    """The median, and its 95 % confidence interval by the sign test, which holds whatever the distribution."""
    ordered, n = sorted(values), len(values)
    rank, ways, below = 0, 1, 0  # ways: n choose rank; below: how many of the 2**n outcomes have fewer than that
    while 40 * (below + ways) <= 2**n:
        below += ways
        ways = ways * (n - rank) // (rank + 1)
        rank += 1
    first = max(0, rank - 1)
    return median(ordered), ordered[first], ordered[n - 1 - first]


def _alternate(ways: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """What all `ways` say that they took, a row for each round."""
    if rounds < 1:
        raise OptionError(f"rounds must be at least 1, got {rounds}.")
    for way in ways:
        way()
    with _undisturbed():
        order = list(range(len(ways)))
        rows = []
        for _ in range(rounds):
            order.append(order.pop(0)) if len(ways) > 2 else order.reverse()
            row = {i: ways[i]() for i in order}
            rows.append([row[i] for i in range(len(ways))])
        return rows


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collection, and no tracing: a coverage tool's work at every line is not the code's."""
    collecting, trace = gc.isenabled(), sys.gettrace()
    gc.collect()
    gc.disable()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(trace)
        if collecting:
            gc.enable()


def _timed(call: Callable[[], object], timer: Callable[[], Any] = perf_counter) -> Callable[[], float]:
    def seconds() -> float:
        start = timer()
        if not isinstance(start, Real):
            raise OptionError(f"timer must return seconds, got {type(start).__name__}.")
        call()
        return float(timer() - start)

    return seconds
