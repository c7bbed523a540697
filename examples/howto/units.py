"""
What excites a unit?
====================

To learn what a channel detects, go through a set of images once, keep the patches with its highest activations, and
project the unit back to the pixels (Zeiler & Fergus 2013, figure 2).
"""

import torch
from skimage import data
from torch.nn import functional as F
from torch.utils.data import DataLoader

import torch_featviz as fv

info = fv.zoo.card("efficientnet_lite0")
model = info.load()


def squares(name, side=160):
    """Cut a photograph into overlapping squares, preprocessed for the network."""
    photo = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1).float() / 255
    cut = F.unfold(photo[None], side, stride=side // 2)[0].t().view(-1, 3, side, side)
    return [info.preprocess(square)[0] for square in cut]


images = [square for name in ("chelsea", "astronaut", "coffee") for square in squares(name)]
layer = "_blocks.2._expand_conv"
best = fv.top_patches(model, DataLoader(images, batch_size=16), layer, k=9)
strongest = best.values[:, 0].topk(6).indices.tolist()
fv.exemplars(best, strongest, card=info)

# %%
# Left are the patches, right the projections: the pattern in each patch that activates the unit (mid-grey is 0). Each
# channel detects edges of one slant, in a cat, an astronaut and a cup of coffee. For a folder with thousands of images,
# use ``fv.zoo.ImageFiles("FOLDER", info.preprocess)`` as the data set: it takes one pass, in constant memory.
#
# A deconvnet depends on the patch only through the switches of max pools. This network has no max pools, so its
# deconvnet projects a unit in the same way from every patch. The default here is therefore guided backpropagation, as
# the title says. The legend gives the cosine between the projections of a channel: 1 means that they do not depend on
# the patch. This is the deconvnet for comparison:

fv.exemplars(best, strongest, projection="deconvnet", value_range=info.denormalize)

# %%
# For one unit of one image call :func:`~torch_featviz.deconvnet`; it chooses the method by the same rule. The result is
# signed and has the shape of the image:

cat = images[:1]
down = fv.deconvnet(model, torch.stack(cat), layer, strongest[:1])
print(tuple(down.shape), f"from {down.min():.1f} to {down.max():.1f}")

# %%
# From the shell: ``featviz units efficientnet_lite0 --layer _blocks.2._expand_conv --data FOLDER``.
