"""What an index shows of the package."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tomllib():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    return tomllib


def test_every_dependency_has_a_lower_bound():
    project = tomllib().loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [each for each in project["dependencies"] if ">=" not in each] == []


def test_the_oldest_python_is_the_first_of_the_classifiers():
    project = tomllib().loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [each.rpartition(" ")[2] for each in project["classifiers"] if "Python :: 3." in each]
    assert project["requires-python"] == f">={found[0]}"
