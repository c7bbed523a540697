"""
A detector: why this box?
=========================

A detector answers with boxes. Each has a class, a score and reasons of its own: ``attribute`` and ``attributions`` find
the boxes in what the model returns, and explain each by its own class logit, before overlapping boxes are suppressed.
"""

import torch

import torch_featviz as fv
from examples.shapes import NAMES, scene, trained

detector = trained()
images = torch.stack([scene(seed)[0] for seed in (1, 2)])
fv.attributions(detector, images, classes=NAMES, title="Why a disc, why a square?")

# %%
# The detector is torchvision's RetinaNet with a backbone of four convolutions; ``examples/shapes.py`` draws the images
# and trained it. Left is the image with the boxes, then the heatmap of each box, best first. Red speaks for the class
# of that box: it lies where the box is, although nothing cuts it off there.
#
# The same as numbers. No target is needed:

why = fv.attribute(detector, images)
for box, label, score in zip(why.boxes.xyxy, why.boxes.classes, why.boxes.scores, strict=True):
    print(f"{NAMES[label]} {score:.0%} at {[round(edge) for edge in box.tolist()]}")
print(why.heatmaps.shape, "from", why.where)


# %%
# How much of the red lies within the box? Its share is to be far above the box's share of the image, which is what a
# heatmap without any meaning would have.


def within(heatmap, box):
    left, top, right, bottom = box.round().long().clamp(min=0).tolist()
    red = heatmap.clamp(min=0)
    return float(red[top:bottom, left:right].sum() / red.sum())


for heatmap, box in zip(why.heatmaps, why.boxes.xyxy, strict=True):
    area = float((box[2:] - box[:2]).prod()) / heatmap.numel()
    print(f"{within(heatmap, box):.0%} of the red, {area:.0%} of the image")

# %%
# An image without boxes has no heatmaps, and the picture says so.

fv.attributions(detector, 0.5 * torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)))

# %%
# **Which map is it?** The default method for boxes is LayerCAM, at the maps that enter the detector's head: the latest
# ones that both the class and the place of a box are computed from. If a box reads several scales, their maps are
# joined, and the legend says so. ``layer=`` takes others. A heatmap is brought back to the image's own pixels if the
# model resizes and pads its images, as torchvision's do.
#
# **Which models?** Those of torchvision; the DETR family of transformers, whose outputs have ``logits`` and
# ``pred_boxes``; and tensors as YOLO's exports return them, ``b n 4+1+c`` or ``b 4+c n``. For other outputs pass
# ``target=`` a callable. ``top=`` is the number of boxes, ``min_score=`` the lowest score where the model returns all
# candidates. A two-stage detector pools each box from its proposal, so that its heatmaps cannot leave the proposal.
#
# From the shell: ``featviz why torchvision:fasterrcnn_mobilenet_v3_large_fpn --image street.jpg``.
