"""
CIFAR-10: from an MLP to convolutions
=====================================

The tutorial looks at CIFAR-10, normalises it, and compares an MLP of 3.7 million parameters with a CNN of 18
thousand. This page is built without downloads: its images are pieces of three photographs. The real data are
``fv.zoo.cifar10("data", download=True)``.
"""

import torch
from PIL import Image
from skimage import data
from torch.utils.data import DataLoader, TensorDataset

import torch_featviz as fv
from torch_featviz.zoo import VERTICAL_EDGE, FilterBank, evaluate, fit, from_pil

CLASSES = ("cat", "astronaut", "coffee")
photos = [from_pil(Image.fromarray(getattr(data, name)())) for name in ("chelsea", "astronaut", "coffee")]


def pieces(count, seed):
    """So many pieces of 32 × 32 pixels, and the number of the photograph that each is from."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        photo = photos[i % 3]
        top, left = (int(torch.randint(side - 32, (1,), generator=draw)) for side in photo.shape[1:])
        rows.append(photo[:, top : top + 32, left : left + 32])
    return torch.stack(rows), torch.arange(count) % 3


images, labels = pieces(600, 0)
fv.samples(zip(images, labels, strict=True), classes=CLASSES, n=10)

# %%
# **One image with its label and class name.**

fv.images(images[1], labels[1:2], classes=CLASSES)

# %%
# **Mean and standard deviation of each channel**, in one pass.

mean, std = (values.float() for values in fv.channel_stats(TensorDataset(images, labels)))
print(mean, std)

# %%
# **Normalise, and look at it again.** The view is told how the images were normalised, and shows them as they were.

normal = (images - mean[:, None, None]) / std[:, None, None]
fv.images(normal[:10], labels[:10], classes=CLASSES, value_range={"mean": mean, "std": std})

# %%
# **How many parameters?** Layer by layer, and in all.

mlp, cnn = fv.zoo.card("cifar_mlp").build(), fv.zoo.card("cifar_cnn").build()
print(fv.summary(mlp, (3, 32, 32)))
print(fv.summary(cnn, (3, 32, 32)))

# %%
# **An edge filter over a colour image.**

with torch.no_grad():
    edges = FilterBank([VERTICAL_EDGE])(images[:1]).conv[0]
fv.feature_maps(edges, title=f"A vertical edge filter: {edges.shape[1]} × {edges.shape[2]} values are left of 32 × 32")

# %%
# **Cross entropy against squared error**, over the probability of the right class.

p = torch.linspace(0.01, 0.99, 99)
fv.curves(
    {"loss": {"cross entropy": (-p.log()).tolist(), "squared error": ((1 - p) ** 2).tolist()}},
    x=p.tolist(),
    xlabel="probability of the right class",
)

# %%
# **Train on three classes**, with a line for each epoch.

torch.manual_seed(0)
model = fv.zoo.card("cifar_cnn_3").build()
train = DataLoader(TensorDataset(normal, labels), 32, shuffle=True)
held_out_images, held_out_labels = pieces(150, 1)
held_out = DataLoader(TensorDataset((held_out_images - mean[:, None, None]) / std[:, None, None], held_out_labels), 50)
history = fit(model, train, held_out, epochs=8, log=print, progress=False)

# %%
# **Accuracy, and which class is taken for which.**

result = evaluate(model, held_out)
fv.confusion(result.confusion, CLASSES)
