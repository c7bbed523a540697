"""
DeepLab: what each mask rests on
================================

A segmenter gives each pixel a class. Which parts of the image does the mask of one class rest on: its own pixels, or
what lies around them? Here torchvision's ``DeepLabV3`` on three convolutions learns to tell discs from squares within
seconds. The published network is ``torchvision.models.segmentation.deeplabv3_resnet50(weights="DEFAULT").eval()``;
``card = fv.zoo.card("torchvision:deeplabv3_resnet50")`` prepares its images and knows the names of its classes.
"""

# sphinx_gallery_thumbnail_number = 1
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation import DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

import torch_featviz as fv

torch.manual_seed(0)
SIDE, NAMES = 32, ["background", "disc", "square"]


def drawings(count):
    """Images with one disc and one square, and the class of each pixel."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    images, labels = 0.3 + 0.1 * torch.rand(count, 3, SIDE, SIDE), torch.zeros(count, SIDE, SIDE, dtype=torch.long)
    for image, label in zip(images, labels, strict=True):
        left = int(torch.randint(2, (1,)))
        for k in (1, 2):
            radius, row = int(torch.randint(5, 8, (1,))), int(torch.randint(8, SIDE - 8, (1,)))
            column = SIDE // 4 if k == 1 + left else 3 * SIDE // 4
            down, across = (y - row).abs(), (x - column).abs()
            inside = down**2 + across**2 <= radius**2 if k == 1 else torch.maximum(down, across) <= radius - 1
            image[:, inside] = 0.4 + 0.6 * torch.rand(3, 1)
            label[inside] = k
    return images, labels


class Backbone(nn.Sequential):
    """Three convolutions of 3 × 3, whose map has a quarter of the image's places along each side."""

    def __init__(self):
        layers = []
        for a, b, stride in ((3, 16, 2), (16, 24, 2), (24, 32, 1)):
            layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        super().__init__(*layers)

    def forward(self, x):
        return {"out": super().forward(x)}


model, (images, labels) = DeepLabV3(Backbone(), DeepLabHead(32, len(NAMES), (1, 2, 3))), drawings(256)
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=70)
for _ in range(70):
    batch = torch.randint(len(images), (12,))
    loss = F.cross_entropy(model(images[batch])["out"], labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
model.eval()

# %%
# The masks over new images. The same class has the same colour in every picture, and the legend says how much each of
# them covers.

new, truth = drawings(2)
with torch.no_grad():
    scores = model(new)["out"]
print(f"right: {100 * (scores.argmax(1) == truth).float().mean():.1f} % of the pixels")
fv.segments(scores, NAMES, new)

# %%
# What speaks for a class is asked **over its own mask**: the mean of its score over the pixels where it is the highest
# (Vinogradova et al. 2020). The line is the edge of that mask.

methods = ["layercam", "integrated_gradients"]
few = {"integrated_gradients": {"n_steps": 12}}
fv.attributions(model, new, targets=["disc", "square"], methods=methods, classes=NAMES, options=few)

# %%
# Read the verdicts. A heatmap of a mask lies near the mask whatever the network has learnt, since no gradient comes
# from beyond its receptive field. So LayerCAM stays alike when all weights are randomised, and its verdict says that,
# however good its figures look.
#
# The map is what the pyramid of dilated convolutions, ``classifier.0``, returns: all that follows reads it alone. A
# U-Net hands earlier maps on to its decoder; all of them together carry the answer, so that they are joined, and the
# legend says how. One of them alone is chosen with ``layer=``. The figures below each heatmap are of the mean
# probability over the mask, which stays that of the whole image while pixels come and go.
#
# The same as tensors. Without a target, the class with the most pixels is explained, and the background last:

why = fv.attribute(model, new, method="layercam", classes=NAMES)
print("explained:", [NAMES[k] for k in why.classes])
print("looks at:", why.where)
print("share of the red within the mask:", [f"{each:.0%}" for each in why.within])
print("the mask's share of the image:", [f"{each:.0%}" for each in why.area])

# %%
# This works with torchvision's and transformers' segmenters as they are, too: ``fv.zoo.card`` knows the names of the
# classes. From the shell: ``featviz why torchvision:deeplabv3_mobilenet_v3_large --image cat.jpg --class cat``.
