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
    methods=["gradcam", "integrated_gradients"],
    options={"integrated_gradients": {"n_steps": 16}},
    card=info,
    title="What speaks for an Egyptian cat?",
)

# %%
# Red speaks for the class, blue against it. The figures below each heatmap: **insertion** is how fast the class becomes
# probable when the pixels come back in the heatmap's order (high is good), **deletion** how fast it goes when they are
# taken away (low is good), each beside the figure of a random order. A method that hardly changes when all weights are
# made random is marked ``(!)``: it draws the image, not the model.
#
# Several classes are compared with ``targets=``. The same in numbers, for a loop of your own:

why = fv.attribute(model, cat, method="gradcam")
worth = fv.faithfulness(model, cat, why)
print(f"insertion {worth.insertion.item():.2f}, of a random order {worth.random_insertion.item():.2f}")
print(f"deletion  {worth.deletion.item():.2f}, of a random order {worth.random_deletion.item():.2f}")
print("the same without what was learnt:", worth.unmoved)

# %%
# Read both: here the pixels that Grad-CAM names first bring the cat back far sooner than chance does, but without them
# the network still knows it, longer than without pixels at random. The one figure alone would have told half of it.

# %%
# From the shell: ``featviz why efficientnet_lite0 --image cat.jpg --method gradcam --class tabby``.
