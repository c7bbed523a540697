"""What we cost on a GPU, beside what else a user would write, all in one process a section; at most four minutes.

python benchmarks/gpu.py [--out benchmarks/gpu.md] [--section NAME] [--device cuda]

Each row is printed as it is known, and the table is written anew after each; a section that takes longer than its time
is ended, and says so. `--device cpu` shows that the script runs, with smaller batches, and writes no table.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import torch_featviz as fv
from torch_featviz.bench import added, launches, paired
from torch_featviz.capture import Histogram, Moments, ToCPU, TopK, capture
from torch_featviz.training import Monitor
from torch_featviz.zoo import card

SECONDS = {"values": 20, "figures": 35, "training": 35, "explaining": 60, "by reference": 30, "compiled": 60}
LAYERS = [nn.Conv2d, nn.Linear]
FIVE = ("features.0", "features.3", "features.6", "features.10", "classifier.6")  # of AlexNet
Row = tuple[str, str, str, bool]  # what, measured, asked for, whether it is met
device = torch.device("cuda")
small = False


def main() -> int:
    global device, small
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gpu.md"))
    parser.add_argument("--section", choices=SECONDS)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device, small = torch.device(options.device), options.device == "cpu"
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; this script measures nothing without one", file=sys.stderr)
        return 2
    if options.section:
        for row in SECTIONS[options.section]():
            print(json.dumps(row), flush=True)
        return 0
    rows: list[Row] = []
    for name, seconds in SECONDS.items():
        for row in of_section(name, seconds):
            rows.append(row)
            print(" | ".join(map(str, row)), flush=True)
            if not small:
                write(options.out, rows)
    return 0 if all(row[-1] for row in rows) else 1


def of_section(name: str, seconds: float) -> Iterator[Row]:
    """The rows of a section, from a process of its own, until its time is over."""
    command = [sys.executable, __file__, "--section", name, "--device", device.type]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        for line in process.stdout:
            with suppress(json.JSONDecodeError):
                what, measured, asked, met = json.loads(line)
                yield what, measured, asked, met
        late = timer.finished.is_set()
        timer.cancel()
    if process.returncode:
        yield f"section {name!r}", f"took longer than {seconds:.0f} s" if late else "failed", "to its end", False


def write(path: Path, rows: list[Row]) -> None:
    """The table so far, aside and then in its place."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "a CPU, to show that the script runs"
    head = f"# On a GPU\n\n{name}, torch {torch.__version__}, {date.today()}, `python benchmarks/gpu.py`\n\n"
    table = ["| what | measured | asked for | |", "|---|---|---|---|"]
    table += [f"| {what} | {measured} | {asked} | {'yes' if met else 'NO'} |" for what, measured, asked, met in rows]
    aside = path.with_suffix(".part")
    aside.write_text(head + "\n".join(table) + "\n")
    aside.replace(path)


# What is measured


def values() -> Iterator[Row]:
    """Whether what comes back is right."""
    net, x = made("resnet50", 2)
    with torch.no_grad():
        seen = cloned(net, lambda: net(x), tuple(LAYERS))
        with capture(net, LAYERS) as acts:
            net(x)
            net(x)
        right = all(torch.allclose(acts[name], output, rtol=1e-3, atol=1e-3) for name, output in seen.items())
        yield "values of all convolutions", "right" if right else "WRONG", "right", right
        with capture(net, LAYERS, into=[Moments(), Histogram(), TopK()]) as stats:
            net(x)
            net(x)
    worst = 0.0
    for name, output in seen.items():
        moments, histogram, top = Moments(), Histogram(), TopK()
        for reducer in (moments, histogram, top):
            reducer.update(output.cpu())
        got = stats[name]
        worst = max(worst, float((got[0].mean - moments.mean).abs().max() / moments.std.max().clamp(min=1e-9)))
        worst = max(worst, float((got[2].values[:, 0] - top.values[:, 0]).abs().max() / moments.std.max()))
        worst = max(worst, abs(int(got[1].counts.sum()) - 2 * int(histogram.counts.sum())))
    yield "figures of all layers, to the CPU's, in stds", f"{worst:.1e}", "1e-2", worst <= 1e-2
    if device.type == "cuda":
        with torch.no_grad(), capture(net, LAYERS) as acts:
            net(x)
            yield ("waits in capture by reference", *none_of(lambda: net(x)))
        with torch.no_grad(), capture(net, LAYERS, into=[Moments(), Histogram(), TopK()]) as stats:
            net(x)
            yield ("waits in figures", *none_of(lambda: net(x)))


def by_reference() -> Iterator[Row]:
    """All leaves, and five layers, to hooks that keep as much, with their values right."""
    with torch.no_grad():
        for name, batch in (("alexnet", 1), ("alexnet", 128), ("resnet50", 1), ("resnet50", 32)):
            net, x = made(name, batch)
            mine, hooked = copy.deepcopy(net), copy.deepcopy(net)
            keep_by_hooks(hooked, x)
            title = f"all leaves by reference, {name}, batch {len(x)}"
            with capture(mine):
                ratio = paired(done(mine, x), done(hooked, x), rounds=ROUNDS)
                bare = paired(done(mine, x), done(net, x), rounds=ROUNDS)
            yield f"{title}, to hooks that keep overwritten values", str(ratio), "1.02", ratio.within(1.02)
            yield f"{title}, to bare", str(bare), "", True
        for name, batch in (("alexnet", 1), ("resnet50", 1), ("resnet50", 32)):
            net, x = made(name, batch)
            five = [name for name, _ in net.named_children()][-6:-1] if name != "alexnet" else list(FIVE)
            mine, hooked = copy.deepcopy(net), copy.deepcopy(net)
            keep_by_hooks(hooked, x, five)
            with capture(mine, five):
                ratio = paired(done(mine, x), done(hooked, x), rounds=ROUNDS)
            yield (
                f"five layers by reference, {name}, batch {len(x)}, to these hooks",
                str(ratio),
                "1.01",
                ratio.within(1.01),
            )
        with capture(mine, nn.Conv2d, into=ToCPU()):
            ratio = paired(done(mine, x), then_to_cpu(net, x), rounds=9)
        yield "ToCPU, to the forward and then the copies", str(ratio), "below 1", ratio.high < 1


def figures() -> Iterator[Row]:
    """`Moments` of all convolutions and linear layers, to the bare forward."""
    cases = (
        ("alexnet", 128, 1.10),
        ("resnet50", 128, 1.20),
        ("alexnet", 1, 1.5),
        ("resnet50", 1, 1.15),
        ("vit_b_16", 8, 1.10),
    )
    with torch.no_grad():
        for name, batch, most in cases:
            for layout in (torch.contiguous_format, torch.channels_last)[: 1 if name.startswith("vit") else 2]:
                net, x = made(name, batch)
                net, x = net.to(memory_format=layout), x.to(memory_format=layout)
                mine = copy.deepcopy(net)
                size = sum(output.nbytes for output in cloned(net, lambda n=net, i=x: n(i), tuple(LAYERS)).values())
                with capture(mine, LAYERS, into=Moments()):
                    ratio = paired(done(mine, x), done(net, x), rounds=ROUNDS)
                    more = on_device(lambda m=mine, i=x: m(i)) - on_device(lambda n=net, i=x: n(i))
                last = ", channels last" if layout == torch.channels_last else ""
                title = f"Moments, {name}, batch {len(x)}{last}"
                yield f"{title}, to bare", str(ratio), str(most), ratio.within(most)
                share = more / (size / bandwidth())
                asked = "2" if batch > 1 else ""
                yield (
                    f"{title}, on the device, to reading {size / 1e6:.0f} MB",
                    f"{share:.2f}",
                    asked,
                    batch == 1 or share <= 2,
                )
        net, x = made("resnet50", 1)
        for into in (Moments(), Histogram(), TopK(), [Moments(), Histogram(), TopK()]):
            found = launches(net, x, LAYERS, into=into)
            name = "all three" if isinstance(into, list) else type(into).__name__
            yield f"launches of {name}, ResNet-50", f"{found.added}, {found.waits} waits", "8, 0", found.added <= 8


def compiled() -> Iterator[Row]:
    """`Moments` within a compiled graph."""
    net = card("cifar_cnn_large").build().eval().to(device)
    x = torch.randn(8 if small else 128, 3, 32, 32, device=device)
    mine = torch.compile(copy.deepcopy(net), fullgraph=True)
    bare = torch.compile(net, fullgraph=True)
    with torch.no_grad():
        size = sum(output.nbytes for output in cloned(net, lambda: net(x), nn.Conv2d).values())
        bare(x)
        yield "CifarCNN compiles", "yes", "yes", True
        with capture(mine, nn.Conv2d, into=Moments()):
            mine(x)
            yield "CifarCNN with Moments compiles", "yes", "yes", True
            (more,) = added(done(bare, x), done(mine, x), rounds=ROUNDS)
    share = more.median / (size / bandwidth())
    yield "Moments, compiled, what is added to reading the bytes", f"{share:.1f}", "1.5", share <= 1.5
    if device.type == "cuda":
        net, x = made("resnet18", 2)
        with torch.no_grad():
            seen = net(x)
            graphs = torch.compile(net, mode="reduce-overhead", fullgraph=True)
            with capture(graphs, [nn.Linear]) as acts:
                for _ in range(4):
                    graphs(x)
                kept = acts["fc"].clone()
                graphs(torch.zeros_like(x))
        right = torch.allclose(kept, seen, rtol=1e-2, atol=1e-2)
        yield "with CUDA graphs, values after the next call", "right" if right else "WRONG", "right", right


def training() -> Iterator[Row]:
    """A watched step to the bare one."""
    cases = [("CifarCNN", card("cifar_cnn_large").build(), 128, 32)]
    cases += [("ResNet-50", torchvision.models.resnet50(), 64, 224)]
    for title, net, batch, side in cases:
        x = torch.randn(4 if small else batch, 3, 32 if small else side, 32 if small else side, device=device)
        y = torch.randint(10, (len(x),), device=device)
        bare, watched, between = (step_of(copy.deepcopy(net).to(device).train(), x, y, n) for n in (0, 1, 10**9))
        ratio = paired(watched, bare, rounds=max(6, ROUNDS // 2))
        yield f"Monitor(every=1), {title}, batch {len(x)}, to bare", str(ratio), "1.15", ratio.within(1.15)
        idle = paired(between, bare, rounds=max(6, ROUNDS // 2)).median - 1
        for every, most in ((10, 1.02), (100, 1.005)):
            of_all = 1 + (ratio.median - 1 + (every - 1) * idle) / every
            yield (
                f"Monitor(every={every}), from that and a step between samples",
                f"{of_all:.4g}",
                str(most),
                of_all <= most,
            )
        hooked = copy.deepcopy(net).to(device).train()
        item_hooks(hooked)
        ratio = paired(watched, step_of(hooked, x, y, 0), rounds=max(6, ROUNDS // 4))
        yield f"Monitor(every=1), {title}, to hooks with item()", str(ratio), "1", ratio.within(1.0)


def explaining() -> Iterator[Row]:
    """Heatmaps and what is drawn of them."""
    images, heatmaps = torch.rand(16, 3, 224, 224, device=device), torch.randn(16, 224, 224, device=device)
    scale = fv.Scale(symmetric=True, vmax=1.0)
    (cost,) = added(lambda: None, waited(lambda: fv.overlay(images, heatmaps, scale=scale)), rounds=ROUNDS)
    size = 16 * 224 * 224 * (3 * 4 + 4 + 4)
    share = cost.median / (size / bandwidth())
    yield "overlay of 16 images, to its bytes", f"{share:.0f}", "25", share <= 25
    for name in ("resnet18", "resnet50"):
        net, x = made(name, 16)
        bare = waited(lambda n=net, i=x: gradient_at(n, n.layer4, i))
        mine = waited(lambda n=net, i=x: fv.attribute(n, i, target=3, layer="layer4"))
        ratio = paired(mine, bare, rounds=ROUNDS)
        yield f"Grad-CAM of {len(x)} images, {name}, to forward and backward", str(ratio), "1.05", ratio.within(1.05)
        with suppress(ImportError):
            from torchcam.methods import GradCAM  # noqa: PLC0415

            other = copy.deepcopy(net)
            method = GradCAM(other, "layer4")
            theirs = waited(lambda m=method, o=other, i=x: m([3] * len(i), o(i)))
            ratio = paired(mine, theirs, rounds=ROUNDS)
            yield f"the same, to torchcam, {name}", str(ratio), "1", ratio.within(1.0)
    net, x = made("alexnet", 1)
    units = [(channel, 1, 1) for channel in range(64)]
    many = x.expand(64, -1, -1, -1).contiguous()
    mine = waited(lambda: fv.deconvnet(net, x, "features.10", units=units))
    ratio = paired(mine, waited(lambda: back_to_pixels(net.features[:12], many)), rounds=max(6, ROUNDS // 4))
    yield "deconvnet of 64 units, AlexNet, to forward and backward of 64", str(ratio), "1.3", ratio.within(1.3)
    net, _ = made("resnet18", 1)
    batches = list(torch.rand(2 if small else 32, 64, 3, 96, 96))
    mine = waited(lambda: fv.top_patches(net, batches, "layer4"))
    ratio = paired(mine, waited(lambda: forwards(net, batches)), rounds=6)
    yield "top_patches, ResNet-18, 2,048 images of 96², to the forwards", str(ratio), "1.1", ratio.within(1.1)
    if device.type == "cuda":
        net, x = made("resnet50", 2)
        share = on_device(lambda: fv.atlas(net, x)) / on_device(lambda: net(x))
        yield "atlas of ResNet-50, on the device, in forwards", f"{share:.0f}", "40", share <= 40


SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    "values": values,
    "figures": figures,
    "training": training,
    "explaining": explaining,
    "by reference": by_reference,
    "compiled": compiled,
}
ROUNDS = 31


# What else a user would write


def made(name: str, batch: int) -> tuple[Any, Tensor]:
    """A network of torchvision in evaluation mode, and so many images."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)().eval().to(device)
    side = 64 if small and not name.startswith("vit") else 224
    return net, torch.rand(min(batch, 2) if small else batch, 3, side, side, device=device)


def done(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """One forward, waited for."""
    return waited(lambda: model(x))


def waited(call: Callable[[], object]) -> Callable[[], None]:
    """`call`, and the wait for the device."""

    def both() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return both


def cloned(net: nn.Module, call: Callable[[], object], kinds: Any) -> dict[str, Tensor]:
    """A clone of what each layer of these kinds returned in `call()`."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, module in net.named_modules():
            if isinstance(module, kinds):
                keep = lambda _m, _i, output, name=name: seen.__setitem__(name, output.detach().clone())
                stack.callback(module.register_forward_hook(keep).remove)
        call()
    return seen


def keep_by_hooks(net: nn.Module, x: Tensor, names: Sequence[str] = ()) -> None:
    """Hooks that keep each output, and a clone of those that are overwritten, as one forward tells; default: leaves."""
    kept: dict[str, Any] = {}
    leaves = {
        name: each for name, each in net.named_modules() if (name in names if names else not list(each.children()))
    }
    versions: dict[str, int] = {}

    def look(_module: nn.Module, _inputs: Any, output: Tensor, name: str) -> None:
        kept[name], versions[name] = output, output._version

    with ExitStack() as stack:
        for name, module in leaves.items():
            stack.callback(module.register_forward_hook(partial(look, name=name)).remove)
        net(x)
    for name, module in leaves.items():
        if kept[name]._version != versions[name]:
            module.register_forward_hook(lambda _m, _i, output, name=name: kept.__setitem__(name, output.clone()))
        else:
            module.register_forward_hook(lambda _m, _i, output, name=name: kept.__setitem__(name, output))


def item_hooks(net: nn.Module) -> None:
    """As one logs by hand."""
    seen: list[tuple[float, ...]] = []

    def look(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.append((output.mean().item(), output.std().item(), (output == 0).float().mean().item()))
        del seen[:-100]

    for module in net.modules():
        if isinstance(module, tuple(LAYERS)):
            module.register_forward_hook(look)


def step_of(net: nn.Module, x: Tensor, y: Tensor, every: int) -> Callable[[], None]:
    """A training step, watched or not."""
    optimizer = torch.optim.SGD(net.parameters(), 1e-4)
    watch = Monitor(net, every=every) if every else None

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    def watched() -> None:
        assert watch is not None
        with watch.step():
            step()

    return waited(watched if watch else step)


def gradient_at(net: nn.Module, layer: nn.Module, x: Tensor) -> None:
    """A forward, and the backward to what `layer` returned."""
    held: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _m, _i, output: held.append(output))
    score = net(x)[:, 3].sum()
    hook.remove()
    torch.autograd.grad(score, held[0])


def back_to_pixels(part: nn.Module, x: Tensor) -> None:
    """A forward of the first layers, and the backward of all that they return to the image."""
    x = x.detach().requires_grad_()
    torch.autograd.grad(part(x)[:, 0, 1, 1].sum(), x)


@torch.no_grad()
def forwards(net: nn.Module, batches: list[Tensor]) -> None:
    for batch in batches:
        net(batch.to(device))


def then_to_cpu(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """A forward, and then copies of all convolutions' outputs."""
    outputs = cloned(net, lambda: net(x), nn.Conv2d)
    targets = {name: torch.empty_like(output, device="cpu") for name, output in outputs.items()}

    def both() -> None:
        net(x)
        for name, target in targets.items():
            target.copy_(outputs[name])

    return waited(both)


def none_of(call: Callable[[], object]) -> tuple[str, str, bool]:
    """What in `call` waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return str(error).splitlines()[0], "none", False
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none", "none", True


def on_device(call: Callable[[], object]) -> float:
    """Seconds that kernels and copies of `call` take there; on a CPU, that it takes."""
    if device.type == "cpu":
        (cost,) = added(lambda: None, call, rounds=9)
        return cost.median
    call()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
        for _ in range(5):
            call()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in seen.key_averages()) / 5e6


def bandwidth() -> float:
    """Bytes that are read or written a second, by a copy."""
    if not _BANDWIDTH:
        a = torch.empty(2**22 if small else 2**29, dtype=torch.uint8, device=device)
        b = torch.empty_like(a)
        (cost,) = added(lambda: None, waited(lambda: b.copy_(a)), rounds=9)
        _BANDWIDTH.append(2 * a.numel() / cost.median)
    return _BANDWIDTH[0]


_BANDWIDTH: list[float] = []


if __name__ == "__main__":
    raise SystemExit(main())
