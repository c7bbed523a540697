"""What every docstring example may use without importing it."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _example_names(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace["torch"] = torch
    doctest_namespace["nn"] = torch.nn
