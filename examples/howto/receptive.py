"""
What does a unit see?
=====================

A unit of a deep layer sees a part of the image only. How large it is follows from the operators on the way, exactly;
how much of it the unit makes use of depends on the weights, and is far less.
"""

import torch

import torch_featviz as fv

torch.manual_seed(0)
model = fv.zoo.card("efficientnet_lite0").load()
for layer in ("_conv_stem", "_blocks.2", "_blocks.5", "_blocks.8"):
    field = fv.receptive_field(model, layer, (224, 224))
    print(f"{layer:10} sees {field.size[0]:3} pixels, {field.stride[0]:2} from one unit to the next ({field.kind})")

# %%
# Where in the image is it? A box for each unit, cut off at the borders: from where to where, in rows and in columns.

print(field.box(0, 0), field.box(7, 7))

# %%
# How much of its box does the unit in the middle use? White is the box; inside, how much each pixel moves the unit.

fv.effective_field(fv.receptive_field(model, "_blocks.5", (224, 224), effective=True))

# %%
# Deeper, the box covers most of the image, and the unit still looks at its middle.

fv.effective_field(fv.receptive_field(model, "_blocks.8", (224, 224), effective=True))
