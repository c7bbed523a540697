"""
CIFAR-10: a larger CNN, and a pretrained network looked at
==========================================================

The tutorial goes on to augmentation, checkpoints, a confusion matrix, the maps of a pretrained VGG, and an
adversarial example. This page is built without downloads, with EfficientNet-Lite0 in VGG's place
(``fv.zoo.card("torchvision:vgg11")``).
"""

import tempfile
from pathlib import Path

import torch
from PIL import Image
from skimage import data
from torch import nn
from torchvision.transforms import v2

import torch_featviz as fv
from torch_featviz.zoo import from_pil

# %%
# **What size does a convolution return?** Padding, stride, dilation and groups change it; nothing is computed.

conv = nn.Conv2d(3, 8, 3, stride=2, dilation=2, padding=1)
print(fv.shapes(nn.Sequential(conv), (1, 3, 32, 32)))
print(fv.receptive_field(nn.Sequential(conv, nn.Conv2d(8, 8, 3)), "1", (32, 32)).size)

# %%
# **Augmentations**, each with what it costs on this machine.

cat = from_pil(Image.fromarray(data.chelsea()))
fv.augmentations(
    cat,
    {
        "flip": v2.RandomHorizontalFlip(1.0),
        "crop": v2.RandomResizedCrop(224),
        "rotation": v2.RandomRotation(30),
        "colour": v2.ColorJitter(0.5, 0.5, 0.5),
    },
)

# %%
# **CifarCNN**: its parameters and its size.

print(fv.summary(fv.zoo.card("cifar_cnn_large").build(), (3, 32, 32)))

# %%
# **Checkpoints** under the usual keys load, and only as weights.

card = fv.zoo.card("cifar_cnn")
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "ckpt.pth"
    torch.save({"net": card.build().state_dict(), "epoch": 12}, path)
    model = card.load(path)

# %%
# **A pretrained network**: what it says of a cat, and with test-time augmentation.

card = fv.zoo.card("efficientnet_lite0")
model, images = card.load(), card.preprocess(cat)
plain = fv.probabilities(model, images)
averaged = fv.probabilities(model, images, augment=fv.augment("flip", "crops"))
for name, answer in (("as it is", plain), ("flips and crops", averaged)):
    print(f"{name}: {card.classes[int(answer.argmax())]}, {answer.max():.1%}")

# %%
# **One map for each stage.**

fv.overview(model, images)

# %%
# **Why?** Each heatmap is measured, and says whether it is better than chance.

fv.attributions(model, images, methods=["gradcam", "saliency"], card=card)

# %%
# **An adversarial example**: within a two-hundredth of the range of a pixel, a cat becomes an airliner.

fv.adversarial(model, images, target=404, eps=0.005, card=card)
