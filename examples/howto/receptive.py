"""
What does a unit see?
=====================

A unit of a deep layer sees only a part of the image, its receptive field. Its size follows exactly from the operators
before the layer. How much of it the unit really uses depends on the weights, and is far less.
"""

import torch

import torch_featviz as fv

torch.manual_seed(0)
model = fv.zoo.card("efficientnet_lite0").load()
for layer in ("_conv_stem", "_blocks.2", "_blocks.5", "_blocks.8"):
    field = fv.receptive_field(model, layer, (224, 224))
    print(f"{layer:10} sees {field.size[0]:3} pixels, stride {field.stride[0]:2} ({field.kind})")

# %%
# Where is the field in the image? Each unit has a box, clipped at the borders: start and end in rows and in columns.

print(field.box(0, 0), field.box(7, 7))

# %%
# How much of its box does the middle unit use? The box is white; inside it, the colour shows how much each pixel
# influences the unit.

fv.effective_field(fv.receptive_field(model, "_blocks.5", (224, 224), effective=True))

# %%
# Deeper, the box covers most of the image, and the unit still looks at its middle.

fv.effective_field(fv.receptive_field(model, "_blocks.8", (224, 224), effective=True))
