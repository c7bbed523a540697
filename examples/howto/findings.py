"""
What is wrong with my training?
===============================

When a layer dies, activations explode, gradients vanish or the first NaN appears, a ``Monitor`` reports it in words,
once: as a warning, in ``watch.findings``, and below its report. This network is broken on purpose.
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
# The report shows the same: one layer's values stay in one bin, and the gradients are 0.

watch.report(title="The bias of the third convolution (4) starts at −10")

# %%
# Where does a NaN come from? One call, without training, returns the first layer whose output contains one:

with torch.no_grad():
    model[2].weight[3, 0, 0, 0] = torch.nan
print(fv.first_nonfinite(model, images))
