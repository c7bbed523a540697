"""
XO: circles and crosses
=======================

The tutorial trains a small network to tell a circle from a cross, and rewrites its ``forward`` to see inside. You
wrote a second class for each network that you looked at. Here the network stays as it is.
"""

import torch
from torch.utils.data import DataLoader

import torch_featviz as fv
from torch_featviz.zoo import XO, evaluate, fit

train, test = XO("train"), XO("test")
fv.samples(train, n=5, title="Five circles, five crosses")

# %%
# **Train it.** ``log=print`` says how each epoch went.

torch.manual_seed(0)
model = fv.zoo.card("xo").build()
history = fit(model, DataLoader(train, 20, shuffle=True), DataLoader(test, 50), epochs=2, log=print, progress=False)
fv.curves(
    {
        "loss": {"train": history.train_loss, "valid": history.valid_loss},
        "accuracy": {"train": history.train_accuracy, "valid": history.valid_accuracy},
    }
)

# %%
# **How good is it?** On drawings that it never saw.

result = evaluate(model, DataLoader(test, 50))
fv.confusion(result.confusion, test.classes)

# %%
# **One drawing**, and how sure the network is of it.

circle, cross = test[0][0], test[1][0]
with torch.no_grad():
    logits = model(torch.stack([circle, cross]))
fv.predictions(torch.stack([circle, cross]), logits, test.classes, targets=[0, 1])

# %%
# **Three stages of the first layer**, side by side for both drawings: no second class, no rewritten ``forward``.

with torch.no_grad(), fv.capture(model, ["features.conv1", "features.relu1", "features.pool1"]) as acts:
    model(torch.stack([circle, cross]))
for layer, output in acts.items():
    print(layer, tuple(output.shape))
maps = dict(zip(["circle", "cross"], acts["features.relu1"], strict=True))
fv.feature_maps(maps, title="After conv1 and its ReLU")

# %%
# **The kernels** of the second convolution: 5 filters of 9 × 3 × 3 on one sheet.

fv.kernels(model, "features.conv2")

# %%
# **How much of the drawing does one value see?**

print(fv.receptive_field(model, "features.conv2", (116, 116)))

# %%
# **Low, middle and high features** of a cross, one map for each layer.

fv.overview(model, cross[None])

# %%
# **Networks side by side**: accuracy, time and parameters.

deep = fv.zoo.card("xo_deep").build()
fit(deep, DataLoader(train, 20, shuffle=True), epochs=1, progress=False)
fv.compare({"xo": model, "xo_deep": deep}, DataLoader(test, 50)).picture()

# %%
# **A class for each pixel**, as a fully convolutional network says it. Here ink is told from paper by hand.

ink = (cross < 0.5).float()
fv.segments(torch.cat([1 - ink, ink]), ["paper", "ink"], cross)
