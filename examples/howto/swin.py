"""
Swin-T: attention within windows, and the map behind an answer
==============================================================

A Swin transformer has no class token: each place attends within a window, and the windows are shifted in every second
block. Here torchvision's ``SwinTransformer``, made small, learns to name a shape somewhere in noise. The published
network is ``torchvision.models.swin_t(weights="DEFAULT").eval()``; ``card = fv.zoo.card("torchvision:swin_t")``
prepares its images, ``card.preprocess("cat.jpg")``, and with ``card=card`` pictures know its colours and classes.
"""

# sphinx_gallery_thumbnail_number = 1
import torch
from torch import nn
from torchvision.models import SwinTransformer

import torch_featviz as fv

CLASSES = ("ring", "square", "cross", "saltire")


def draw(count, seed):
    """Images of 36 × 36 pixels: noise, and in it one shape of 12 × 12."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(-6, 6) + 0.5, torch.arange(-6, 6) + 0.5, indexing="ij")
    ring, square = (x.hypot(y) - 4.5).abs() < 1, (torch.maximum(x.abs(), y.abs()) - 4.5).abs() < 1
    cross, saltire = torch.minimum(x.abs(), y.abs()) < 1, (x.abs() - y.abs()).abs() < 1
    shapes = torch.stack([ring, square, cross, saltire])
    labels = torch.randint(4, (count,), generator=random)
    corners = torch.randint(24, (count, 2), generator=random)
    images = 0.2 * torch.rand(count, 1, 36, 36, generator=random)
    for image, label, (top, left) in zip(images, labels, corners.tolist(), strict=True):
        image[:, top : top + 12, left : left + 12] += 0.8 * shapes[label]
    return images.expand(-1, 3, -1, -1), labels


torch.manual_seed(0)
model = SwinTransformer([3, 3], 24, [2, 2], [2, 4], [6, 6], mlp_ratio=2.0, stochastic_depth_prob=0.0, num_classes=4)
for layer in model.modules():
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)  # Swin's own initial weights are too small for 24 channels
images, labels = draw(2048, seed=0)
optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=120)
for _ in range(120):
    batch = torch.randint(len(images), (32,))
    loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

model.eval()
test, truth = draw(256, seed=1)
with torch.no_grad():
    print(f"{(model(test).argmax(1) == truth).float().mean():.1%} of new images are right")

# %%
# What does one place look at? Each tile is a head; the place is outlined. It is given by its row and column on the grid
# of tokens, here 12 × 12. Weights are put back where their windows are: beyond the window they are 0, since the network
# computes none there. The second block shifts the windows, so that the same place has other neighbours.

fv.attention(model, test[:1], ["features.1.0.attn", "features.1.1.attn"], queries=(4, 4))

# %%
# All layers of one image. Without a class token the mean over all places is drawn: how much each place is looked at.

fv.attention(model, test[:1])

# %%
# How far does each head look? In pixels of the image. The windows are the limit.

fv.attention_distance(model, test[:64])

# %%
# The tokens as feature maps. Swin's blocks return ``b h w c``; ``layout`` tells which axes are the places. These are
# the 16 strongest channels of the first stage.

with fv.capture(model, "features.1") as kept, torch.no_grad():
    model(test[:1])
fv.feature_maps(kept["features.1"], layout=kept.layout("features.1"), top=16)

# %%
# What do the tokens hold? Three principal components as colours: tokens of one colour are alike. The windows are seen:
# their other tokens know of a shape in them.

fv.tokens(model, test[:4], "features.1")

# %%
# What speaks for the answer? No layer is given: Grad-CAM takes the latest map that has places and that the whole answer
# depends on. Here that is after the last stage, where each token has seen the whole image: all tokens speak for the
# answer, and the verdict says that such a heatmap is no better than chance. Methods that look at pixels are.

fv.attributions(model, test[:3], methods=["gradcam", "integrated_gradients", "occlusion"], classes=CLASSES)
