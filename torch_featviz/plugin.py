"""The pytest plugin: the fixture `capture_overhead` measures the cost of a capture on your model.

Every pytest run on a machine with this package imports this file, so it imports torch only when the fixture is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .bench import Overhead

_measured = pytest.StashKey[list[tuple[str, "Overhead"]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_measured] = []
    if config.getoption("benchmark_enable", None) is not None:  # pytest-benchmark is here, however it was loaded
        config.pluginmanager.register(_WithBenchmark(), "featviz_with_benchmark")


@pytest.fixture
def capture_overhead(request: pytest.FixtureRequest) -> Callable[..., Overhead]:
    """Measure the cost of a capture, as `torch_featviz.bench.overhead` does, and report it after the run.

    Example:
        def test_capture_stays_cheap(capture_overhead):
            cost = capture_overhead(model, images, ["layer1", "layer4"])
            assert cost.ratio.within(1.05)

    Each measurement is one line of the test summary. If pytest-benchmark writes JSON, the measurement is in it under
    `featviz`. The test is skipped under `--benchmark-disable` and `--benchmark-skip`, and in pytest-xdist workers,
    which disturb each other's timing.
    """
    if why := _why_not(request.config):
        pytest.skip(why)

    def measure(model: Any, inputs: Any, layers: Any = None, *, rounds: int | None = None, **options: Any) -> Overhead:
        from .bench import overhead  # noqa: PLC0415  no torch on import

        cost = overhead(model, inputs, layers, rounds=rounds, **options)
        request.config.stash[_measured].append((request.node.nodeid, cost))
        return cost

    return measure


class _WithBenchmark:
    """Where pytest-benchmark is, a test with the fixture is a benchmark: in table, files and `--benchmark-only`."""

    @pytest.fixture
    def capture_overhead(self, capture_overhead: Callable[..., Overhead], benchmark: Any) -> Callable[..., Overhead]:
        """Measure what capturing costs a model, as `torch_featviz.bench.overhead` does; report it and save it."""

        def measure(model: Any, inputs: Any, layers: Any = None, **kwargs: Any) -> Overhead:
            from .bench import captured_forward  # noqa: PLC0415

            cost = capture_overhead(model, inputs, layers, **kwargs)
            if benchmark.stats is None:  # else the test has timed something by itself, or it is the second call
                kwargs.pop("rounds", None)
                with captured_forward(model, inputs, layers, **kwargs) as forward:
                    benchmark.pedantic(forward, rounds=15, warmup_rounds=1)
            return cost

        return measure

    def pytest_benchmark_update_json(self, config: pytest.Config, output_json: dict[str, Any]) -> None:
        from torch import __version__ as version  # noqa: PLC0415

        output_json["featviz"] = [
            {"test": test, **cost.as_dict(), "torch": version} for test, cost in config.stash[_measured]
        ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if measured := config.stash[_measured]:
        terminalreporter.section("capture overhead")
        for test, cost in measured:
            terminalreporter.write_line(f"{test}: {cost}")


def _why_not(config: pytest.Config) -> str | None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        return "capture_overhead is a timing; workers of pytest-xdist disturb each other. Run this test with -n 0."
    option: Callable[[str], Any] = lambda name: config.getoption(name, False)
    if option("benchmark_disable") and not option("benchmark_enable"):
        return "capture_overhead is a timing, and --benchmark-disable is on; --benchmark-enable overrules that."
    if option("benchmark_skip") and not option("benchmark_only"):
        return "capture_overhead is a timing, and --benchmark-skip is on."
    return None
