"""
What does each layer make of it?
================================

One picture from the pixels to the decision: one map per layer, in order of execution.
"""

import torch
from PIL import Image
from skimage import data

import torch_featviz as fv

info = fv.zoo.card("efficientnet_lite0")
model = info.load()
cat = info.preprocess(Image.fromarray(data.chelsea()))
blocks = ["_conv_stem", *(f"_blocks.{i}" for i in range(16))]
fv.overview(model, cat, blocks, title="A cat, block by block: mean over channels")

# %%
# Each map is the mean over the channels of a layer. Maps get smaller from layer to layer, and show larger structures:
# strokes first, then parts, then places. Each map has its own scale, because layers differ in range; its maximum is
# printed above it. Without the list of layers, the layers are chosen for you.
#
# And the prediction:

with torch.no_grad():
    logits = model(cat)
fv.predictions(cat, logits, info.classes, k=5, card=info)

# %%
# From the shell: ``featviz overview efficientnet_lite0 --image cat.jpg``.
