"""
A segmenter: what each mask rests on
====================================

A segmenter gives each pixel a class. Which parts of the image does the mask of one class rest on: its own pixels, or
what lies around them? Here is a small U-Net that learns to tell discs from squares within seconds.
"""

import torch
from torch import nn
from torch.nn import functional as F

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


def block(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc1, self.enc2, self.middle = block(3, 12), block(12, 24), block(24, 48)
        self.up2, self.up1 = nn.ConvTranspose2d(48, 24, 2, 2), nn.ConvTranspose2d(24, 12, 2, 2)
        self.dec2, self.dec1 = block(48, 24), block(24, 12)
        self.head = nn.Conv2d(12, len(NAMES), 1)

    def forward(self, x):
        first = self.enc1(x)
        second = self.enc2(F.max_pool2d(first, 2))
        middle = self.middle(F.max_pool2d(second, 2))
        upper = self.dec2(torch.cat([self.up2(middle), second], 1))
        return self.head(self.dec1(torch.cat([self.up1(upper), first], 1)))


model, (images, labels) = UNet(), drawings(256)
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(150):
    batch = torch.randint(len(images), (16,))
    loss = F.cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()

# %%
# The masks over new images. The same class has the same colour in every picture, and the legend says how much each of
# them covers.

new, truth = drawings(2)
with torch.no_grad():
    scores = model(new)
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
# from beyond its receptive field. So LayerCAM stays alike when all weights are randomised, and is not called better
# than chance there, however good its figures look.
#
# A U-Net's decoder reads the bottleneck and, beside it, the earlier maps that are handed on to it. All of them together
# carry the answer, so that they are joined; the legend says how. One of them alone is chosen with ``layer="middle"``.
# The figures below each heatmap are of the mean probability over the mask, which stays that of the whole image while
# pixels come and go.
#
# The same as tensors. Without a target, the class with the most pixels is explained, and the background last:

why = fv.attribute(model, new, method="layercam", classes=NAMES)
print("explained:", [NAMES[k] for k in why.classes])
print("looks at:", why.where)
inside = (why.heatmaps.clamp(min=0) * why.mask).sum((1, 2)) / why.heatmaps.clamp(min=0).sum((1, 2))
print("share of the positive relevance inside the mask:", [f"{100 * float(each):.0f} %" for each in inside])

# %%
# This works with torchvision's and transformers' segmenters as they are, too: ``fv.zoo.card`` knows the names of the
# classes. From the shell: ``featviz why torchvision:deeplabv3_mobilenet_v3_large --image cat.jpg --class cat``.
