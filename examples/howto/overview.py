"""
What does each layer make of it?
================================

One picture from the pixels to the decision: one map for each layer, in the order in which they run.
"""

import torch
from PIL import Image
from skimage import data

import torch_featviz as fv

info = fv.zoo.card("efficientnet_lite0")
model = info.load()
cat = info.preprocess(Image.fromarray(data.chelsea()))
fv.overview(model, cat, title="A cat, layer by layer")

# %%
# Maps get smaller, and what they mean gets larger: strokes first, then parts, then places. Below, the answer.

with torch.no_grad():
    logits = model(cat)
shown = info.denormalize(cat).clamp(0, 1)
fv.predictions(shown, logits, info.classes, k=5)

# %%
# The shapes of all layers come without computing anything:

for layer, shape in list(fv.shapes(model, cat.shape).items())[:6]:
    print(layer, shape)

# %%
# From the shell: ``featviz overview efficientnet_lite0 --image cat.jpg``.
