"""
What does one convolution do to a photograph?
=============================================

Before any training: the numbers in an image, and what a hand-made filter does with them.
"""

import torch
from PIL import Image
from skimage import data

import torch_featviz as fv
from torch_featviz.zoo import SOBEL_X, SOBEL_Y, FilterBank, from_pil

photo = from_pil(Image.fromarray(data.camera()).resize((256, 256)), "L")
fv.images(photo, "a photograph")

# %%
# **The numbers.** A crop of 12 × 12 pixels, each with its value in its cell.

piece = (photo[:, 60:72, 120:132] * 255).round().byte()
fv.pixels(piece, title="12 × 12 pixels, from row 60 and column 120")

# %%
# **Two filters**, by Sobel: red weights are positive, blue ones negative. Sobel x responds where the image gets lighter
# to the right, Sobel y where it gets lighter downwards.

sobel = FilterBank([SOBEL_X, SOBEL_Y])
fv.pixels(sobel.conv.weight[0], decimals=0, scale=fv.Scale(symmetric=True), title="Sobel x")

# %%
# **Their feature maps.** Red is a positive response, blue a negative one; both maps have one scale.

with torch.no_grad():
    x, y = sobel(photo[None]).conv[0]
fv.feature_maps({"Sobel x": x[None], "Sobel y": y[None]}, title="Edges of a photograph")

# %%
# **As in a network:** four filters, then a ReLU, which keeps positive values, then a max-pool, which halves the map and
# keeps the edges.

bank = FilterBank()
with torch.no_grad():
    stages = bank(photo[None])
fv.feature_maps(stages.conv[0], ncols=4, title="Four edges, before the ReLU")

# %%

fv.feature_maps(stages.pool[0], scale=fv.Scale(vmin=0), ncols=4, title="After the ReLU and a 2 × 2 max-pool")
