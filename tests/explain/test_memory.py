"""Peak memory of long methods stays under a bound where the whole batch at once would take many times that."""

import pytest

SCRIPT = """
import resource, sys, torch
from torch import nn
from torch_featviz.explain import attribute

torch.set_num_threads(1)
net = nn.Sequential(*(nn.Sequential(nn.Conv2d(3 if i == 0 else 16, 16, 1), nn.ReLU()) for i in range(6)))
net = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
images = torch.randn({images}, 3, 96, 96)
attribute(net, images[:1], target=0, method={method!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attribute(net, images, target=0, method={method!r}, **{options})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
ROW = 16 * 96 * 96 * 4 * 12 / 2**20  # MiB that autograd holds for one image, at least


@pytest.mark.parametrize(
    ("method", "images", "options", "rows"),
    [
        ("integrated_gradients", 64, {"n_steps": 8}, 512),
        pytest.param("saliency", 400, {}, 400, marks=pytest.mark.slow),
    ],
)
def test_peak(method, images, options, rows, forks):
    script = SCRIPT.format(method=method, images=images, options=options)
    done = forks.run(script)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    assert rows * ROW > 2.5 * 1024  # MiB, of all rows at once
    assert grown < 1.6 * 1024, f"{grown} MiB"
