"""
How do I bring my own model?
============================

Any ``nn.Module`` will do: the views take modules and tensors. A ``ModelCard`` adds what a file of weights does not say:
how images are fed to the model, what its classes are called, and which layers are worth a look.
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
# Which layers are there? These are the names that everything else takes.

model = card.build().eval()
print(fv.layer_names(model))

# %%
# Your own weights: a state dict, as ``.pt``, ``.pth`` or ``.safetensors``. A pickle that wants to run code is refused.

with TemporaryDirectory() as folder:
    torch.save(model.state_dict(), Path(folder) / "weights.pt")
    model = card.load(Path(folder) / "weights.pt")

# %%
# From a photograph to an answer. ``preprocess`` takes a PIL image, or a tensor in [0, 1]; nothing is guessed.

photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1) / 255
images = card.preprocess(photo)
with torch.no_grad():
    logits = model(images)
title = "An untrained network guesses"
fv.predictions(images, logits, card.classes, card=card, title=title)

# %%
# From here on it is like any other network.

fv.overview(model, images, title="mine, layer by layer")
