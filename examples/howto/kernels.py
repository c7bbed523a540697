"""
What do the kernels look like?
==============================

The first convolution of a trained network can be read by eye, because its filters work on pixels. The network is
EfficientNet-Lite0 with ImageNet weights; nothing is downloaded.
"""

import torch

import torch_featviz as fv

torch.manual_seed(0)
info = fv.zoo.card("efficientnet_lite0")
model = info.load()
fv.kernels(model, info.low)

# %%
# A filter with three input channels is drawn in colour: grey is 0, each colour channel is a signed weight. You see
# edges in all directions, blobs, and filters that compare two colours. Flat filters do nothing.
#
# **Before and after on one scale.** A scale is declared, never guessed, and can be shared. These are random and trained
# weights on a scale that fits both:

untrained = info.build()
before, after = (net.get_submodule(info.low).weight for net in (untrained, model))
scale = fv.Scale(symmetric=True).fit(before, after)
fv.kernels(before, scale=scale)

# %%

fv.kernels(after, scale=scale)

# %%
# **One scale per filter.** One strong filter makes the others pale. With ``per="filter"`` each filter has its own
# scale: good for seeing shapes, useless for comparing strengths. The legend says which it is.

fv.kernels(model, info.low, scale=fv.Scale(symmetric=True, per="filter"))

# %%
# From the shell: ``featviz kernels efficientnet_lite0 --out kernels.png``.
