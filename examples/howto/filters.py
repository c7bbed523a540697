"""
What does one convolution do to a photograph?
=============================================

Before anything is learnt: what the computer sees, and what a filter made by hand does to it.
"""

import torch
from PIL import Image
from skimage import data

import torch_featviz as fv
from torch_featviz.zoo import SOBEL_X, SOBEL_Y, FilterBank, from_pil

photo = from_pil(Image.fromarray(data.camera()).resize((256, 256)), "L")
fv.samples([(photo, 0)], classes=["a photograph"])

# %%
# **The numbers.** A piece of 12 × 12 pixels, each with its value written in its cell.

piece = (photo[:, 60:72, 120:132] * 255).round().byte()
fv.pixels(piece, title="12 × 12 pixels, from row 60 and column 120")

# %%
# **Two filters.** Sobel's: red weighs for, blue against. One looks for what gets lighter to the right, one for what
# gets lighter downwards.

sobel = FilterBank([SOBEL_X, SOBEL_Y])
fv.pixels(sobel.conv.weight[0], decimals=0, scale=fv.Scale(symmetric=True), title="Sobel x")

# %%
# **What they find.** Red is a positive answer, blue a negative one, on one scale for both.

with torch.no_grad():
    x, y = sobel(photo[None]).conv[0]
fv.feature_maps({"Sobel x": x[None], "Sobel y": y[None]}, title="Edges of a photograph")

# %%
# **What a network makes of it.** Four filters, then a ReLU, which keeps what is positive, then a max-pool, which halves
# the map and keeps the edges.

bank = FilterBank()
with torch.no_grad():
    stages = bank(photo[None])
fv.feature_maps(stages.conv[0], ncols=4, title="Four edges, before the ReLU")

# %%

fv.feature_maps(stages.pool[0], scale=fv.Scale(vmin=0), ncols=4, title="After the ReLU and a 2 × 2 max-pool")
