"""
Filters: a network looked at layer by layer
===========================================

The tutorial slides four filters of 4 × 4 over a photograph, then applies a ReLU and a max-pool. You did this with a
class that is given its weights, and with loops over ``subplot``. Here each step is one line.
"""

import torch
from PIL import Image
from skimage import data
from sklearn.datasets import load_digits
from torch import nn

import torch_featviz as fv
from torch_featviz.zoo import SOBEL_X, SOBEL_Y, FilterBank, from_pil

digits = torch.tensor(load_digits().images / 16, dtype=torch.float32)[:, None]  # offline; or fv.zoo.mnist("data")
labels = load_digits().target

# %%
# **Twenty digits with their labels**, in two rows.

fv.images(digits[:20], labels[:20])

# %%
# **A picture is numbers.** Each value stands on its colour.

fv.pixels(digits[0], title="A zero")

# %%
# **A colour picture is three planes**: red, green and blue, here of six by six pixels around an eye.

cat = from_pil(Image.fromarray(data.chelsea()))
fv.pixels(cat[:, 112:118, 128:134], decimals=1)

# %%
# **An MLP against a CNN**: how many parameters does each have?

mlp = nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
cnn = nn.Sequential(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(256, 10))
print(fv.summary(mlp, (1, 28, 28)))
print(fv.summary(cnn, (1, 28, 28)))

# %%
# **Sobel's filters** find edges; red is a positive answer, blue a negative one.

photo = from_pil(Image.fromarray(data.camera()).resize((256, 256)), "L")
with torch.no_grad():
    edges = FilterBank([SOBEL_X, SOBEL_Y])(photo).conv[0]
fv.feature_maps({"left to right": edges[:1], "top to bottom": edges[1:]}, title="Edges of a photograph")

# %%
# **Four filters, each weight written in its cell**, in a row.

bank = FilterBank()
fv.kernels(bank.conv, values=True)

# %%
# **The photograph after each stage.** The convolution answers with both signs, the ReLU keeps what is above 0, and the
# max-pool halves the map and keeps the edges.

with torch.no_grad():
    stages = bank(photo[None])
fv.feature_maps(stages.conv[0], ncols=4, title="After the convolution")

# %%

fv.feature_maps(stages.relu[0], ncols=4, title="After the ReLU")

# %%

fv.feature_maps(stages.pool[0], ncols=4, title="After a 2 × 2 max-pool")

# %%
# **Deconvolution** goes the way back: from one unit to the pixels that moved it.

card = fv.zoo.card("efficientnet_lite0")
fv.projection(card.load(), card.preprocess(cat), "_blocks.3._expand_conv", unit=7, card=card)
