"""Run in each of two ranks: captures of distributed models, each compared with a twin that has hooks."""

import json
import time
import warnings
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

LEAVES = ["0.0", "0.1", "1.0", "1.1"]


def network(compile_blocks=False):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True))
    model = nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.Linear(144, 5)))
    if compile_blocks:
        for block in model:
            block.compile(backend="aot_eager")
    return model


def sharded(mesh, compile_blocks=False):
    from torch.distributed.fsdp import fully_shard

    model = network(compile_blocks)
    for part in (*model, model):
        fully_shard(part, mesh=mesh)
    return model


def compiled(model):
    return torch.compile(model, backend="aot_eager")


def cases(mesh):
    """By name: a compiled or wrapped model, the same uncompiled, and the layers to capture."""
    shard, ddp = partial(sharded, mesh), lambda: DistributedDataParallel(network())
    return {
        "ddp": (ddp, ddp, LEAVES),
        "compile(ddp)": (lambda: compiled(ddp()), ddp, LEAVES),
        "ddp(compile)": (lambda: DistributedDataParallel(compiled(network())), ddp, LEAVES),
        "fsdp": (shard, shard, LEAVES),
        "fsdp, sharded parts": (shard, shard, ["0", "1", ""]),
        "fsdp of compiled parts": (partial(shard, True), shard, [*LEAVES, "0", "1"]),
        "compile(fsdp)": (lambda: compiled(shard()), shard, [*LEAVES, "0", "1"]),
    }


def step(model, x):
    model.zero_grad()
    output = model(x)
    output.sum().backward()
    return output.detach(), [local(p.grad).clone() for p in model.parameters()]


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def plain(name):
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def check(x, make, make_plain, layers):
    from torch_featviz import capture

    bare, watched, hooked = make(), make(), make_plain()
    seen, arrived = {}, {}

    def keep(output, key):
        seen[key] = output.detach().clone()
        output.register_hook(lambda gradient: arrived.update({key: gradient.clone()}))

    for name, module in hooked.named_modules():
        key = plain(name)
        if key in layers:
            module.register_forward_hook(lambda _m, _i, out, key=key: keep(out, key))
    for _ in range(2):
        expected, gradients = step(bare, x)
        step(hooked, x)
        with capture(watched, layers) as acts:
            output, captured_gradients = step(watched, x)
        assert sorted(acts) == sorted(layers), f"{list(acts)} ran, {acts.not_run} did not"
        for name in layers:
            torch.testing.assert_close(acts[name], seen[name])
        assert torch.equal(output, expected)
        assert all(map(torch.equal, captured_gradients, gradients)), "other gradients than without capture"
    for _ in range(2):
        with capture(watched, layers, of="grad") as grads:
            _, captured_gradients = step(watched, x)
        # Flatten, where it is a compiled graph by itself, leaves its gradient to the code around it
        assert {*layers} - {*grads} <= {"1.0"}
        for name in grads:
            torch.testing.assert_close(grads[name], arrived[name])
        assert all(map(torch.equal, captured_gradients, gradients)), "other gradients than without capture"


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(rank)
    x = torch.randn(2, 1, 6, 6)
    for name, case in cases(dist.init_device_mesh("cpu", (2,))).items():
        try:
            check(x, *case)
            result = "right"
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        if rank == 0:
            print(json.dumps([name, result]), flush=True)
        dist.barrier()
    time.sleep(0.3)  # torch 2.6 waits for ever for threads that have not let go of their tensors yet
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
