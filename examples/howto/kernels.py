"""
What do the kernels look like?
==============================

The first convolution of a trained network is the one layer that can be read by eye: its filters look at pixels. The
network here is EfficientNet-Lite0 with its ImageNet weights; nothing is downloaded.
"""

import torch

import torch_featviz as fv

torch.manual_seed(0)
info = fv.zoo.card("efficientnet_lite0")
model = info.load()
fv.kernels(model, info.low)

# %%
# A filter of three channels is drawn in colour: grey is 0, each colour channel is a signed weight. You see edges of all
# directions, blobs, and filters for a colour against another. Some do nothing: they are flat.
#
# **Before and after on one scale.** A picture's scale is declared, never guessed, and one scale can be shared. Random
# weights and trained ones, on the scale that holds both:

untrained = info.build()
before, after = (net.get_submodule(info.low).weight for net in (untrained, model))
scale = fv.Scale(symmetric=True).fit(before, after)
fv.kernels(before, scale=scale)

# %%

fv.kernels(after, scale=scale)

# %%
# **Each on its own.** One strong filter makes the others pale. With ``per="filter"`` each has a scale of its own:
# good to see shapes, no good to compare strengths. The legend says which it is.

fv.kernels(model, info.low, scale=fv.Scale(symmetric=True, per="filter"))

# %%
# From the shell: ``featviz kernels efficientnet_lite0 --out kernels.png``.
