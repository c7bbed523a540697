"""
What is wrong with my training?
===============================

When a layer dies, values explode, gradients vanish or the first NaN comes, a ``Monitor`` says so in words: once, as a
warning, in ``watch.findings`` and below its report. Here a network is broken on purpose.
"""

import warnings
from itertools import islice

import torch
from torch import nn
from torch.utils.data import DataLoader

import torch_featviz as fv
from torch_featviz.errors import FindingWarning
from torch_featviz.zoo import XO

torch.manual_seed(0)
warnings.simplefilter("ignore", FindingWarning)  # each finding is printed below
model = nn.Sequential(
    *(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU()),
    *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
    *(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 2)),
)
with torch.no_grad():
    model[4].bias.sub_(10)  # no channel of the third convolution will ever fire

optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
watch = fv.Monitor(model, every=4)
for images, labels in islice(DataLoader(XO("train"), 16, shuffle=True), 60):
    with watch.step() as step:
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step.log(loss=loss)
for found in watch.findings:
    print(f"step {found.step}, {found.kind}: {found.text}")

# %%
# The report shows the same: a layer whose values stay in one bin, and gradients that are gone.

watch.report(title="The third convolution (4) begins with a bias of −10")

# %%
# A NaN has a place of birth. Without any training, one call tells which layer is the first to return one:

with torch.no_grad():
    model[2].weight[3, 0, 0, 0] = torch.nan
print(fv.first_nonfinite(model, images))
