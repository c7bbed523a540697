"""
Can I see all of it on one page?
================================

An atlas is one HTML file that shows a network from the pixels to the decision. It needs no other file: send it by mail,
open it anywhere.
"""

# sphinx_gallery_thumbnail_path = "../examples/pictures/atlas.png"
import torch
from torch.utils.data import DataLoader

import torch_featviz as fv
from torch_featviz.zoo import XO, train_xo

model, history, result = train_xo(0, epochs=4, progress=False)
print(f"{100 * result.accuracy:.0f} % of held-out drawings are right")

# %%
# Two drawings to walk through, and the whole test set to find the top-activating patches of each channel.

test = XO("test")
images = torch.stack([next(image for image, label in test if label == k) for k in (0, 1)])
page = fv.atlas(
    model,
    images,
    card=fv.zoo.card("xo_deep"),
    names=test.classes,
    loader=DataLoader(test, batch_size=50),
)
page

# %%
# Point at a map to read its value and to see the part of the drawing that the unit sees. Press Enter to open it, Esc to
# close it; ``?`` lists all keys. ``page.save("atlas.html")`` writes the file.

print(f"{len(page.html.encode()) / 1e6:.1f} MB")
print("Not on the page:", *page.left_out, sep="\n  ")

# %%
# From the shell: ``featviz atlas efficientnet_lite0 --image cat.jpg --data FOLDER --out atlas.html``.
