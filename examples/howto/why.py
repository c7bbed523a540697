"""
Why did it decide?
==================

Attribution methods show which pixels speak for a class. They often disagree, and a heatmap that looks right may have
little to do with the model. So each heatmap comes with a measure of its faithfulness.
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
# Red speaks for the class, blue against it. Below each heatmap are two figures. **Insertion** says how fast the class
# becomes probable when pixels are added in the heatmap's order (high is good). **Deletion** says how fast the class
# disappears when they are removed (low is good). Each stands beside chance, in brackets: that of the same heatmap at
# six other places of the image. A method that hardly changes when all weights are randomised is marked in the legend:
# it shows the image, not the model.
#
# Compare several classes with ``targets=``. The same as numbers, for your own loop:

why = fv.attribute(model, cat, method="gradcam")
worth = fv.faithfulness(model, cat, why)
print(f"insertion {worth.insertion.item():.2f}, at other places {worth.random_insertion.item():.2f}")
print(f"deletion  {worth.deletion.item():.2f}, at other places {worth.random_deletion.item():.2f}")
print("unchanged with random weights:", worth.unmoved)

# %%
# Read both figures. Adding the pixels that Grad-CAM ranks first brings the cat back sooner than adding those of the
# same heatmap elsewhere does, and removing them takes it away sooner.

# %%
# From the shell: ``featviz why efficientnet_lite0 --image cat.jpg --method gradcam --class tabby``.
