"""Capture on a GPU: no kernel and no synchronisation added, copies beside the forward, statistics near the bandwidth.

python benchmarks/gpu.py [--out benchmarks/gpu.md]
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

from torch_featviz.bench import added, paired, peak_memory
from torch_featviz.capture import Moments, ToCPU, capture
from torch_featviz.zoo import card

CASES = {"AlexNet": ("alexnet", (3, 224, 224)), "CifarCNN": ("cifar_cnn_large", (3, 32, 32))}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=Path("benchmarks/gpu.md"))
    options = arguments.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here; this script measures nothing without one", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = False
    rows = []
    with torch.no_grad():
        for title, (name, size) in CASES.items():
            for batch in (1, 128):
                net = card(name).build().eval().cuda()
                rows += [(f"{title}, batch {batch}", *row) for row in measured(net, torch.randn(batch, *size).cuda())]
        rows += [("CUDA graphs", *row) for row in graphs()]
    table = ["| what | | measured | asked for | |", "|---|---|---|---|---|"]
    table += [f"| {' | '.join(map(str, row[:-1]))} | {'yes' if row[-1] else 'NO'} |" for row in rows]
    device = torch.cuda.get_device_name()
    head = f"# Capture on a GPU\n\n{device}, torch {torch.__version__}, {date.today()}, `python benchmarks/gpu.py`\n\n"
    aside = options.out.with_suffix(".part")
    aside.write_text(head + "\n".join(table) + "\n")
    aside.replace(options.out)
    print(options.out.read_text())
    return 0 if all(row[-1] for row in rows) else 1


Row = tuple[str, str, str, bool]  # what, measured, asked for, whether it is met
ROUNDS = 101


def measured(net: nn.Module, x: Tensor) -> list[Row]:
    """All rows of one network on one input."""
    twin = copy.deepcopy(net, {id(tensor): tensor for tensor in net.state_dict(keep_vars=True).values()})
    sums = [moments(net, twin, x, compiled=compiled) for compiled in (False, True)]
    return [*by_reference(net, twin, x), *sums, to_cpu(net, twin, x)]


def by_reference(net: nn.Module, twin: nn.Module, x: Tensor) -> list[Row]:
    """All leaves: kernels, synchronisations, memory and time, against the bare forward."""
    in_place = sum(1 for module in net.modules() if getattr(module, "inplace", False))
    bare, captured = finished(net, x), finished(twin, x)
    with capture(twin) as acts:
        for _ in range(3):
            captured()
        more = kernels(captured) - kernels(bare)
        waits = synchronisation(lambda: twin(x))
        held = sum({value.data_ptr(): value.nbytes for value in acts.values()}.values())
        peak, alone = peak_memory(captured, device=x.device), peak_memory(bare, device=x.device)
        ratio = paired(captured, bare, rounds=ROUNDS)
    assert peak is not None
    assert alone is not None
    most = 1.01 * (alone + held)
    return [
        ("kernels added", str(more.total()), f"copies before {in_place} in-place layers", more.total() <= in_place),
        ("synchronisations added", waits, "none", waits == "none"),
        ("peak memory", f"{peak / 1e6:.1f} MB", f"at most {most / 1e6:.1f} MB", peak <= most),
        ("time of all leaves by reference, to bare", str(ratio), "1.01", ratio.within(1.01)),
    ]


def moments(net: nn.Module, twin: nn.Module, x: Tensor, *, compiled: bool = False) -> Row:
    """What `Moments` of all convolutions adds, over the time in which their outputs can be read once."""
    with capture(net, nn.Conv2d) as acts:
        net(x)
        outputs = list(acts.values())
    bare, other = (torch.compile(each, fullgraph=True) if compiled else each for each in (net, twin))
    with capture(other, nn.Conv2d, into=Moments()):
        for _ in range(3):
            other(x)
        summed, copied = added(finished(bare, x), finished(other, x), then(finished(bare, x), outputs), rounds=ROUNDS)
    share = summed.median / (copied.median / 2)  # a copy reads and writes
    way = "compiled" if compiled else "eager"
    return (f"Moments of all convolutions, {way}, to reading their bytes", f"{share:.2f}", "1.5", share <= 1.5)


def to_cpu(net: nn.Module, twin: nn.Module, x: Tensor) -> Row:
    """Whether copies to the CPU run beside the forward: together they take less than one after the other."""
    with capture(net, nn.Conv2d) as acts:
        net(x)
        outputs = list(acts.values())
    pinned = [torch.empty_like(output, device="cpu", pin_memory=True) for output in outputs]

    def after() -> None:
        net(x)
        for target, output in zip(pinned, outputs, strict=True):
            target.copy_(output, non_blocking=True)
        torch.cuda.synchronize()

    with capture(twin, nn.Conv2d, into=ToCPU()) as copies:
        for _ in range(3):
            twin(x)
        torch.cuda.synchronize()
        right = all(torch.equal(copy.cuda(), output) for copy, output in zip(copies.values(), outputs, strict=True))
        ratio = paired(finished(twin, x), after, rounds=ROUNDS)
    seen = f"{ratio}, {'right' if right else 'WRONG'}"
    return ("ToCPU, to the forward and then the copies", seen, "below 1", right and ratio.high < 1)


def graphs() -> list[Row]:
    """With CUDA graphs, what was captured is still right after the next call."""
    net = card("cifar_cnn_large").build().eval().cuda()
    compiled = torch.compile(net, mode="reduce-overhead", fullgraph=True)
    inputs = [torch.randn(8, 3, 32, 32, device="cuda") for _ in range(6)]
    with capture(compiled, nn.Conv2d) as acts:
        for x in inputs:
            compiled(x)
        kept = dict(acts)
        compiled(torch.zeros_like(inputs[0]))
    with capture(net, nn.Conv2d) as eager:
        net(inputs[-1])
    right = all(torch.allclose(kept[name], value, rtol=1e-3, atol=1e-3) for name, value in eager.items())
    with capture(compiled, nn.Conv2d, into=Moments()) as stats:
        for x in inputs:
            compiled(x)
    with capture(net, nn.Conv2d, into=Moments()) as expected:
        for x in inputs:
            net(x)
    same = all(torch.allclose(stats[name].mean, expected[name].mean, atol=1e-3) for name in expected)
    return [
        ("captured values after the next call", "right" if right else "WRONG", "right", right),
        ("Moments over six calls", "right" if same else "WRONG", "right", same),
    ]


def finished(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """One forward, waited for."""

    def call() -> None:
        model(x)
        torch.cuda.synchronize()

    return call


def then(call: Callable[[], None], tensors: list[Tensor]) -> Callable[[], None]:
    """`call`, and a copy of each of `tensors`."""
    targets = [torch.empty_like(tensor) for tensor in tensors]

    def both() -> None:
        call()
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor)
        torch.cuda.synchronize()

    return both


def kernels(call: Callable[[], None]) -> Counter[str]:
    """How often each kernel runs on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
    return Counter(event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA)


def synchronisation(call: Callable[[], object]) -> str:
    """What in `call` waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return str(error)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


if __name__ == "__main__":
    raise SystemExit(main())
