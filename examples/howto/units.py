"""
What excites a unit?
====================

A channel is known by what moves it. Go through a set of images once, keep the patches where a channel is highest, and
project the unit back to the pixels to see what in the patch does it (Zeiler & Fergus 2013, figure 2).
"""

import torch
from skimage import data
from torch.nn import functional as F
from torch.utils.data import DataLoader

import torch_featviz as fv

info = fv.zoo.card("efficientnet_lite0")
model = info.load()


def squares(name, side=160):
    """Overlapping squares of a photograph, as the network is fed them."""
    photo = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1).float() / 255
    cut = F.unfold(photo[None], side, stride=side // 2)[0].t().view(-1, 3, side, side)
    return [info.preprocess(square)[0] for square in cut]


images = [square for name in ("chelsea", "astronaut", "coffee") for square in squares(name)]
layer = "_blocks.2._expand_conv"
best = fv.top_patches(model, DataLoader(images, batch_size=16), layer, k=9)
strongest = best.values[:, 0].topk(6).indices.tolist()
fv.exemplars(best, strongest, card=info)

# %%
# Left the patches, right what in them excites the unit: mid-grey is 0. Each channel has found edges of its own slant,
# in a cat, an astronaut and a cup of coffee. With a folder of thousands of images, the same takes one pass, in constant
# memory: ``fv.zoo.ImageFiles("FOLDER", info.preprocess)`` is a dataset for the loader.
#
# A deconvnet would know a patch by the switches of max pools alone. This network has none: its deconvnet projects one
# unit alike from every patch, so that the default here is guided backpropagation, as the title says. The legend says
# how far that depends on the patch, by the cosine between the projections of a channel. The deconvnet, with its figure:

fv.exemplars(best, strongest, projection="deconvnet", value_range=info.denormalize)

# %%
# One unit of one image is :func:`~torch_featviz.deconvnet` alone, by the same rule. It is signed, in the shape of the
# image:

cat = images[:1]
down = fv.deconvnet(model, torch.stack(cat), layer, strongest[:1])
print(tuple(down.shape), f"from {down.min():.1f} to {down.max():.1f}")

# %%
# From the shell: ``featviz units efficientnet_lite0 --layer _blocks.2._expand_conv --data FOLDER``.
