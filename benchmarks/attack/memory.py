"""How much a process grows while a `Monitor` watches every step and writes pictures.

    python benchmarks/attack/memory.py --steps 10000

A small CNN is trained; each step is watched, and its kernels, maps and heatmaps are written into a folder. The resident
memory of the process is read every `--every` steps. It fails, with exit code 1, if the process grows by more than
`--bound` megabytes after the first `--warm` steps.

The second column is read after `malloc_trim(0)`: what that gives back, the process did not use, but its allocator
kept.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import torch_featviz as fv


def main() -> int:
    """Train, watch, and tell what it took."""
    asked = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    folder = Path(tempfile.mkdtemp())
    readings: list[tuple[int, float]] = []
    began = time.monotonic()
    try:
        with fv.Monitor(model, every=1, probe=torch.rand(2, 1, 8, 8), why=asked.why, to=folder / "run") as watch:
            for number in range(asked.steps + 1):
                if number % asked.every == 0 or number == asked.warm:
                    readings.append((number, told(number, began)))
                    emptied(folder / "run")
                images, labels = torch.rand(8, 1, 8, 8), torch.randint(3, (8,))
                with watch.step() as step:
                    loss = F.cross_entropy(model(images), labels)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    step.log(loss=loss)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    first = next(memory for number, memory in readings if number >= asked.warm)
    grown = max(memory for number, memory in readings if number >= asked.warm) - first
    print(f"{asked.steps:,} steps: grown by {grown:.1f} MB after the first {asked.warm:,} (at most {asked.bound:g})")
    return int(grown > asked.bound)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=250, help="steps between two readings")
    parser.add_argument("--warm", type=int, default=500, help="steps whose growth does not count")
    parser.add_argument("--bound", type=float, default=20.0, help="megabytes of growth that are allowed")
    parser.add_argument("--why", default="saliency", help="method of the heatmaps")
    return parser.parse_args()


def told(number: int, began: float) -> float:
    """The resident memory, in MB, as a line."""
    gc.collect()
    before = resident()
    trimmed()
    print(
        f"step {number:6,}  {before:7.1f} MB  trimmed {resident():7.1f} MB  {len(gc.get_objects()):8,} objects"
        f"  {time.monotonic() - began:5.0f} s",
        flush=True,
    )
    return before


def resident() -> float:
    """Memory of this process that is in use, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def trimmed() -> None:
    """Have glibc give back what is free; elsewhere nothing is done."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def emptied(folder: Path) -> None:
    """Pictures are removed, so that the disk does not fill."""
    for picture in folder.glob("*/*/*.png"):
        picture.unlink()


if __name__ == "__main__":
    raise SystemExit(main())
