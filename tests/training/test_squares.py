"""The squared norm of all gradients, by an interpreted kernel and without one, against float64."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_featviz.training.squares import Squares

SCRIPT = """
import torch
from torch_featviz.launching import gpu
from torch_featviz.training.squares import PART, Squares
gpu.available = lambda device: True
uploads = []
upload = gpu.upload
gpu.upload = lambda table, device: uploads.append(len(table)) or upload(table, device)
squares = Squares()
sizes = (1, 5, 2048, PART, PART + 1, 3 * PART - 7)
for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
    gradients = [torch.randn(size).to(dtype) for size in sizes]
    gradients.append(torch.randn(4, 3, 5, 6).to(dtype).contiguous(memory_format=torch.channels_last))
    gradients.append(torch.randn(6, 4).to(dtype).t()[::2])  # with gaps: without the kernel
    expected = sum(each.double().square().sum().item() for each in gradients)
    uploads.clear()
    for _ in range(3):
        found = sum(map(float, squares.of(gradients)))
        assert abs(found / expected - 1) < 1e-9, (dtype, found, expected)
    assert len(uploads) == 1 + (dtype is torch.float32), uploads  # addresses, and programs once
mixed = [torch.ones(3), torch.ones(4, dtype=torch.float64), torch.ones(0), torch.full((2,), 1e25)]
found = squares.of(mixed)
assert abs(sum(map(float, found)) / 2e50 - 1) < 1e-6, found
for broken in (torch.inf, torch.nan):
    assert not torch.tensor(squares.of([torch.tensor([1.0, broken]), torch.ones(3)])).sum().isfinite()
assert [part.item() for part in squares.of([torch.ones(2)])] == [2.0]  # nothing of the step before is in it
for _ in range(600):  # more steps than share memory
    assert squares.of([torch.ones(2)])[0].item() == 2.0
print("done")
"""


def test_by_a_kernel():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    if "only 0-dimensional arrays" in done.stderr or "only integer scalar arrays" in done.stderr:
        pytest.skip("this Triton's interpreter cannot loop to a loaded number with this NumPy")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"


@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["float32", "float64", "bfloat16"])), max_size=6),
    st.floats(-30, 20),
)
def test_without_one(several, exponent):
    gradients = [(torch.randn(size) * 10.0**exponent).to(getattr(torch, dtype)) for size, dtype in several]
    expected = sum(float(each.double().square().sum()) for each in gradients)
    parts = Squares().of(gradients)
    assert sum(map(float, parts)) == pytest.approx(expected, rel=1e-4)
