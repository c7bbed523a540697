"""
How do I bring my own model?
============================

Every ``nn.Module`` works: the views take modules and tensors. A ``ModelCard`` adds what a weights file does not
contain: the preprocessing of images, the class names, and the layers worth looking at.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from skimage import data
from torch import nn

import torch_featviz as fv


class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 16, 5, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU())
        self.classify = nn.Linear(32, 3)

    def forward(self, images):
        return self.classify(self.late(self.early(images)).mean((2, 3)))


torch.manual_seed(0)
card = fv.ModelCard(
    "mine",
    build=MyNet,
    input_size=(3, 64, 64),
    classes=("cat", "dog", "bird"),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    low="early.0",
    high="late.0",
)

# %%
# List the layers. All other calls take these names.

model = card.build().eval()
print(fv.layer_names(model))

# %%
# Load your own weights: a state dict as ``.pt``, ``.pth`` or ``.safetensors``. A pickle that runs code is an error.

with TemporaryDirectory() as folder:
    torch.save(model.state_dict(), Path(folder) / "weights.pt")
    model = card.load(Path(folder) / "weights.pt")

# %%
# From a photograph to a prediction. ``preprocess`` takes a PIL image, or a tensor in [0, 1]; nothing is guessed.

photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1) / 255
images = card.preprocess(photo)
with torch.no_grad():
    logits = model(images)
title = "An untrained network guesses"
fv.predictions(images, logits, card.classes, card=card, title=title)

# %%
# From here on, use it like any other network.

fv.overview(model, images, title="mine, layer by layer")
