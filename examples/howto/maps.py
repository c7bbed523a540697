"""
Which maps fire on this image?
==============================

Every channel of a layer answers to something else. Capture what a layer returns for one image, and look at the channels
that answer most.
"""

import torch
from PIL import Image
from skimage import data

import torch_featviz as fv

info = fv.zoo.card("efficientnet_lite0")
model = info.load()
cat = info.preprocess(Image.fromarray(data.chelsea()))
fv.samples([(info.denormalize(cat)[0].clamp(0, 1), 0)], classes=["what the network is shown"])

# %%
# Capturing is one ``with`` block around your own call of the model. Names may be globs, types or modules.

with torch.no_grad(), fv.capture(model, ["_conv_stem", "_blocks.3", "_blocks.10"]) as acts:
    model(cat)
for layer, output in acts.items():
    print(layer, tuple(output.shape))

# %%
# The first layer sees edges and colours. Red is a positive answer, blue a negative one, white is 0.

fv.feature_maps(acts["_conv_stem"][0], top=12, ncols=6, title="_conv_stem: the 12 channels that answer most")

# %%
# Deeper maps are smaller and more choosy: eyes, outlines, background.

fv.feature_maps(acts["_blocks.3"][0], top=12, ncols=6, title="_blocks.3")

# %%
# Two images side by side, on one scale, tell which channels tell them apart.

astronaut = info.preprocess(Image.fromarray(data.astronaut()))
with torch.no_grad(), fv.capture(model, "_blocks.3") as acts:
    model(torch.cat([cat, astronaut]))
both = dict(zip(("cat", "astronaut"), acts["_blocks.3"], strict=True))
fv.feature_maps(both, top=8, ncols=2, title="_blocks.3: a cat and an astronaut")

# %%
# From the shell: ``featviz maps efficientnet_lite0 --image cat.jpg --layer _blocks.3 --top 12``.
