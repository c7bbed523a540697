"""What holds for every measurement here."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _measured(request):
    """On one thread, and only where benchmarks are asked for."""
    if not request.config.getoption("benchmark_enable"):
        pytest.skip("needs --benchmark-enable")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
