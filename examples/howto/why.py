"""
Why did it decide?
==================

Attribution methods say which pixels speak for an answer. They often disagree, and a heatmap that looks right may have
little to do with the model. So every heatmap here comes with a measure of how much it is worth.
"""

from PIL import Image
from skimage import data

import torch_featviz as fv

info = fv.zoo.card("efficientnet_lite0")
model = info.load()
cat = info.preprocess(Image.fromarray(data.chelsea()))
fv.attributions(
    model,
    cat,
    methods=["gradcam", "input_x_gradient"],
    targets=[info.classes.index("Egyptian cat"), info.classes.index("tabby")],
    classes=info.classes,
    to_unit=lambda images: info.denormalize(images).clamp(0, 1),
    title="What speaks for an Egyptian cat, and what for a tabby?",
)

# %%
# Red speaks for the class, blue against it. The figures below each heatmap: **insertion** is how fast the class becomes
# probable when the pixels come back in the heatmap's order (high is good), **deletion** how fast it goes when they are
# taken away (low is good), each beside the figure of a random order. A method that hardly changes when all weights are
# made random is marked ``(!)``: it draws the image, not the model.
#
# The same in numbers, for a loop of your own:

why = fv.attribute(model, cat, method="gradcam")
print(tuple(why.heatmaps.shape), why.heatmaps.aminmax())
print(fv.faithfulness(model, cat, why))

# %%
# From the shell: ``featviz why efficientnet_lite0 --image cat.jpg --method gradcam --class tabby``.
