"""
What happens while it learns?
=============================

A ``Monitor`` around the training step watches one step in ``every``. It records activations, weight updates, kernels,
and the feature maps of a few images of yours. The training stays the same, bit by bit.
"""

# sphinx_gallery_thumbnail_number = 2
from itertools import cycle, islice

import torch
from torch import nn
from torch.utils.data import DataLoader

import torch_featviz as fv
from torch_featviz.zoo import XO

torch.manual_seed(0)
drawings = XO("train")
fv.samples(drawings, n=10, title="Drawn circles and crosses")

# %%
# A small network and a plain training loop, with a block around each step.

model = nn.Sequential(
    *(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(8, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 2)),
)
optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
loader = DataLoader(drawings, 16, shuffle=True)
probe = torch.stack([next(image for image, label in drawings if label == k) for k in (0, 1)])

watch = fv.Monitor(model, every=4, probe=probe)
for images, labels in islice(cycle(loader), 100):
    with watch.step() as step:
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step.log(loss=loss)
print(watch.history, len(watch.findings), "findings")

# %%
# Is every layer alive? Each row is a layer; time runs to the right.

watch.report(title="Two convolutions and a classifier learn circles and crosses")

# %%
# The feature maps of the second convolution for the probe, step by step, on one scale.

watch.film("3", of="maps").strip()

# %%
# The kernels of the first convolution, step by step. ``save("kernels.webp")`` instead of ``strip()`` writes an
# animation.

watch.film("0").strip()

# %%
# The numbers are available too, here the size of each update relative to the weight.

print(watch.history.values("0.weight", "update_ratio")[:5])
