"""
Which maps fire on this image?
==============================

Each channel of a layer responds to another pattern. Capture a layer's output for one image, and look at the channels
with the strongest response.
"""

import torch
from PIL import Image
from skimage import data

import torch_featviz as fv

info = fv.zoo.card("efficientnet_lite0")
model = info.load()
cat = info.preprocess(Image.fromarray(data.chelsea()))

with torch.no_grad(), fv.capture(model, ["_swish", "_blocks.12._swish"]) as acts:
    model(cat)
fv.feature_maps(acts["_swish#1"][0], top=12, ncols=6, title="What the first layer makes of a cat")

# %%
# Each map shows edges of one direction, and channel 6 the dark parts. The number above a map is its channel. Capturing
# is one ``with`` block around your own call of the model; layers may be names, globs, types or modules. A layer that
# runs more than once has one key per call:

for layer, output in acts.items():
    print(layer, tuple(output.shape))

# %%
# Late maps are small and selective. These are the 12 strongest of 1,152.

fv.feature_maps(acts["_blocks.12._swish#2"][0], top=12, ncols=6, title="A late layer")

# %%
# Two images side by side, which channels distinguish them?

both = {"cat": cat, "astronaut": info.preprocess(Image.fromarray(data.astronaut()))}
with torch.no_grad(), fv.capture(model, "_swish") as acts:
    model(torch.cat(list(both.values())))
maps = dict(zip(both, acts["_swish#1"], strict=True))
fv.feature_maps(maps, top=6, ncols=2, title="A cat and an astronaut")

# %%
# From the shell: ``featviz maps efficientnet_lite0 --image cat.jpg --layer _conv_stem --top 12``.
