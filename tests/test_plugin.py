"""The pytest plugin, in runs of its own, found the way an installed one is: by its entry point."""

import json
import os
import re
from pathlib import Path

import pytest

import torch_featviz

pytest_plugins = ["pytester"]

ROOT = Path(torch_featviz.__file__).parents[1]

TEST = """
    import torch
    from torch import nn

    def test_cheap(capture_overhead):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
        cost = capture_overhead(model, torch.zeros(1, 1, 8, 8), ["0", "1"], rounds=3)
        assert cost.calls == 2
        assert cost.ratio.within(1e6)
        assert model[1].num_batches_tracked == 0
"""


@pytest.fixture
def run(pytester, monkeypatch, forks):
    """Run pytest in a process of its own, in which this package is installed, and every warning is an error.

    That is a fork of one that has imported PyTorch, unless `forked=False`.
    """
    text = (ROOT / "pyproject.toml").read_text()
    entry = re.search(r"^\[project\.entry-points\.pytest11\]\n(?:.+\n)+", text, re.MULTILINE)
    installed = pytester.mkdir("installed")
    info = installed / "torch_featviz-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_featviz\nVersion: 0\n")
    (info / "entry_points.txt").write_text(entry[0].replace("project.entry-points.", "").replace('"', ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), str(ROOT)]))
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_XDIST_WORKER", "PYTEST_DISABLE_PLUGIN_AUTOLOAD"):
        monkeypatch.delenv(name, raising=False)

    def run(*options, test=TEST, forked=True):
        pytester.makepyfile(test_it=test)
        others = [f"-pno:{name}" for name in ("anyio", "hypothesispytest", "platformdirs")]  # they start slowly
        options = ["-W", "error", *others, *options]
        if not forked:
            return pytester.runpytest_subprocess(*options)
        code = f"import sys; sys.path.insert(0, {str(installed)!r}); import pytest; sys.exit(pytest.console_main())"
        done = forks.run(code, *options, cwd=str(pytester.path))
        return pytest.RunResult(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), 0.0)

    return run


def test_with_pytest_benchmark_it_is_a_benchmark_and_in_the_json(run, pytester):
    result = run("--benchmark-only", "--benchmark-json=out.json", "--benchmark-autosave", "-q")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*capture overhead*", "test_it.py::test_cheap: * of the bare forward, * MB held, *"])
    saved = list(pytester.path.glob(".benchmarks/*/*.json"))
    assert len(saved) == 1
    for path in (pytester.path / "out.json", *saved):
        written = json.loads(path.read_text())
        (record,) = written["featviz"]
        assert (record["test"], record["device"]) == ("test_it.py::test_cheap", "cpu")
        assert (record["calls"], record["bytes_held"]) == (2, 2 * 2 * 6 * 6 * 4)
        assert set(record["ratio"]) == set(record["us_per_layer"]) == {"median", "low", "high"}
        assert record["peak_over_bare"] >= 0
        assert record["torch"]
        assert [benchmark["fullname"] for benchmark in written["benchmarks"]] == ["test_it.py::test_cheap"]


def test_without_pytest_benchmark_and_a_gate_can_fail(run):
    result = run("-p", "no:benchmark", "-q", test=TEST + TEST.replace("1e6", "0").replace("test_cheap", "test_dear"))
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*assert cost.ratio.within(0)*",
            "*capture overhead*",
            "test_it.py::test_cheap: * of the bare forward, * MB held, *",
            "test_it.py::test_dear: * of the bare forward, * MB held, *",
        ]
    )


def test_beside_the_benchmark_fixture_and_twice(run, pytester):
    result = run(
        "--benchmark-json=out.json",
        test="""
            import torch
            from torch import nn

            def test_both(benchmark, capture_overhead):
                benchmark.pedantic(int, rounds=2)
                for kind in (nn.ReLU, nn.Tanh):
                    capture_overhead(nn.Sequential(kind(), kind()), torch.zeros(4), rounds=1)

            def test_twice(capture_overhead):
                for kind in (nn.ReLU, nn.Tanh):
                    capture_overhead(nn.Sequential(kind(), kind()), torch.zeros(4), rounds=1)
        """,
    )
    result.assert_outcomes(passed=2)
    written = json.loads((pytester.path / "out.json").read_text())
    assert [record["test"].split("::")[1] for record in written["featviz"]] == ["test_both"] * 2 + ["test_twice"] * 2
    assert [benchmark["stats"]["rounds"] for benchmark in written["benchmarks"]] == [2, 15]


NO_TORCH = """
    import sys

    def test_skipped(capture_overhead):
        raise AssertionError("not reached")

    def test_nothing_loaded():
        assert not {"torch", "numpy", "torch_featviz.bench"} & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--benchmark-disable"], "*--benchmark-disable is on; --benchmark-enable overrules that."),
        (["--benchmark-skip"], "*--benchmark-skip*"),
        (["-n1"], "*pytest-xdist*-n 0."),
        (["-n1", "-p", "no:benchmark"], "*pytest-xdist*-n 0."),
    ],
)
def test_skipped_where_timing_means_nothing_and_torch_is_not_imported(run, options, why):
    if "-n1" in options:
        pytest.importorskip("xdist")
    result = run("-rs", "-W", "default::pytest.PytestWarning", *options, test=NO_TORCH, forked=False)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines([why])
    result.stdout.no_fnmatch_line("*capture overhead*")


@pytest.mark.parametrize("options", [["--benchmark-disable", "--benchmark-enable"], ["-n0", "-p", "no:benchmark"]])
def test_not_skipped(run, options):
    if "-n0" in options:
        pytest.importorskip("xdist")
    result = run(*options, "-W", "default:Benchmark fixture was not used", test=NO_TORCH, forked=False)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*not reached*"])


def test_it_can_be_switched_off(run):
    result = run("-p", "no:featviz", test=NO_TORCH, forked=False)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*fixture 'capture_overhead' not found"])
