"""The package as a whole: what importing it brings along, and what it exports."""

import subprocess
import sys

import torch_featviz as fv


def test_import_is_light():
    heavy = "('captum', 'matplotlib', 'torchvision', 'lightning', 'transformers', 'ignite', 'torch._dynamo')"
    code = f"import torch_featviz, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_is_sorted_and_there():
    assert list(fv.__all__) == sorted(fv.__all__)
    assert all(hasattr(fv, name) for name in fv.__all__)


def test_every_error_is_a_featviz_error_and_a_builtin_one():
    for name, kind in vars(fv.errors).items():
        if isinstance(kind, type):
            assert issubclass(kind, fv.FeatvizError), name
            assert name == "FeatvizError" or len(kind.__mro__) > 4
