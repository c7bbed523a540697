"""
ViT-B/16: heads, tokens, and the map behind an answer
=====================================================

What the heads of a vision transformer look at, what its tokens hold, and what speaks for its answer. Here torchvision's
``VisionTransformer``, made small, learns to name a shape somewhere in noise, so that we know where it should look. The
published network is ``torchvision.models.vit_b_16(weights="DEFAULT").eval()``;
``card = fv.zoo.card("torchvision:vit_b_16")`` prepares its images, ``card.preprocess("cat.jpg")``, and with
``card=card`` pictures know its colours and classes.
"""

# sphinx_gallery_thumbnail_number = 1
import torch
from torch import nn
from torchvision.models import VisionTransformer

import torch_featviz as fv

CLASSES = ("ring", "square", "cross", "saltire")


def draw(count, seed):
    """Images of 48 × 48 pixels: noise, and in it one shape of 12 × 12."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(-6, 6) + 0.5, torch.arange(-6, 6) + 0.5, indexing="ij")
    ring, square = (x.hypot(y) - 4.5).abs() < 1, (torch.maximum(x.abs(), y.abs()) - 4.5).abs() < 1
    cross, saltire = torch.minimum(x.abs(), y.abs()) < 1, (x.abs() - y.abs()).abs() < 1
    shapes = torch.stack([ring, square, cross, saltire])
    labels = torch.randint(4, (count,), generator=random)
    corners = torch.randint(36, (count, 2), generator=random)
    images = 0.2 * torch.rand(count, 1, 48, 48, generator=random)
    for image, label, (top, left) in zip(images, labels, corners.tolist(), strict=True):
        image[:, top : top + 12, left : left + 12] += 0.8 * shapes[label]
    return images.expand(-1, 3, -1, -1), labels


torch.manual_seed(0)
model = VisionTransformer(48, 6, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=4)
nn.init.normal_(model.encoder.pos_embedding, std=0.02)
images, labels = draw(4096, seed=0)
optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=180)
for _ in range(180):
    batch = torch.randint(len(images), (48,))
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
# What does each head of the last layer look at? Each tile is a head: the weights that the class token gives to the
# places of the image. They are computed exactly, whichever kernel the network uses, and only the row that is drawn.

fv.attention(model, test[:3], "encoder.layers.encoder_layer_1")

# %%
# All layers of one image. Without ``layers`` all layers with attention are drawn, each in a row.

fv.attention(model, test[:1])

# %%
# Any token can be asked: a place by its row and column on the grid of tokens, which is outlined, or a token by its
# number.

fv.attention(model, test[:1], "encoder.layers.encoder_layer_0", queries=[(1, 1), (4, 4)])

# %%
# How far does each head look? In pixels of the image, averaged over all places and 64 images. The grey line is
# attention that is even over the image. Large networks begin with heads that look near; this small one has none.

fv.attention_distance(model, test[:64])

# %%
# Rollout multiplies the attention of all layers to one map per image. It knows neither the values that the weights
# multiply, nor the class: it says where information may have come from, and not what speaks for the answer.

fv.attention(model, test[:3], rollout=True)

# %%
# What do the tokens hold? Three principal components of the last layer as colours: tokens of one colour are alike, and
# all images share one basis. The class token has no place; it is named in the legend, and left out of the basis.

fv.tokens(model, test[:4], "encoder.layers.encoder_layer_1")

# %%
# What speaks for the answer? Grad-CAM needs no layer and no reshaping: it takes the latest tokens that have a place and
# that the answer depends on. The last block's output is not among them, since only its class token is read.

why = fv.attribute(model, test[:3], method="gradcam")
print("Grad-CAM looks at", why.where)

# %%
# Grad-CAM beside two other methods, each with a verdict. Methods are sorted by it, and those that are no better than
# chance are not to be trusted, however convincing they look.

fv.attributions(model, test[:3], methods=["gradcam", "integrated_gradients", "occlusion"], classes=CLASSES)

# %%
# The weights themselves are captured like any other output, ``images heads queries keys``.

with fv.capture(model, "encoder.layers.*.self_attention", of=fv.Attention(queries=[0])) as attention, torch.no_grad():
    model(test[:3])
for name, weights in attention.items():
    print(name, tuple(weights.shape))
