"""
Faster R-CNN: why this box?
===========================

A detector answers with boxes. Each has a class, a score and reasons of its own: ``attribute`` and ``attributions`` find
the boxes in what the model returns, and explain each by its own class logit, before overlapping boxes are suppressed.
Here torchvision's ``FasterRCNN`` with a small pyramid learns two shapes within seconds. The published network is
``torchvision.models.detection.fasterrcnn_resnet50_fpn(weights="DEFAULT").eval()``;
``card = fv.zoo.card("torchvision:fasterrcnn_resnet50_fpn")`` prepares its images and knows the names of its classes.
"""

# sphinx_gallery_thumbnail_number = 1
import random
from collections import OrderedDict

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

import torch_featviz as fv
from examples.shapes import NAMES, SIDE, scene, trained

torch.manual_seed(0)
fine = trained().backbone.features.requires_grad_(False)  # four convolutions that know the two shapes already
coarse = nn.Sequential(nn.Conv2d(24, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
body = nn.Sequential(OrderedDict(fine=fine, coarse=coarse))
detector = FasterRCNN(
    BackboneWithFPN(body, {"fine": "fine", "coarse": "coarse"}, [24, 32], 24),
    rpn_anchor_generator=AnchorGenerator(((26,), (32,), (40,)), ((1.0,),) * 3),
    box_roi_pool=MultiScaleRoIAlign(["fine", "coarse"], 7, 2),
    box_head=TwoMLPHead(24 * 7 * 7, 64),
    box_predictor=FastRCNNPredictor(64, len(NAMES)),
    **{"min_size": SIDE, "max_size": SIDE, "image_mean": [0.5] * 3, "image_std": [0.25] * 3},
    **{"rpn_batch_size_per_image": 64, "rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 30},
    **{"box_batch_size_per_image": 32, "box_score_thresh": 0.5, "box_nms_thresh": 0.3},
)
detector.train()
fine.eval()
dice = random.Random(0)
optimizer = torch.optim.AdamW([weight for weight in detector.parameters() if weight.requires_grad], 5e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=60)
for step in range(60):
    scenes = [scene(1000 + 8 * step + i, tuple(dice.choices((1, 2), k=dice.randint(1, 3)))) for i in range(8)]
    images, targets = zip(*scenes, strict=True)
    loss = sum(detector(list(images), list(targets)).values())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
    optimizer.step()
    schedule.step()
detector.eval()

# %%
# Left is the image with the boxes, then the heatmap of each box, best first. Red speaks for the class of that box.

images = torch.stack([scene(seed)[0] for seed in (1, 2)])
fv.attributions(detector, images, classes=NAMES, title="Why a disc, why a square?")

# %%
# The same as numbers. No target is needed:

why = fv.attribute(detector, images)
for box, label, score in zip(why.boxes.xyxy, why.boxes.classes, why.boxes.scores, strict=True):
    print(f"{NAMES[label]} {score:.0%} at {[round(edge) for edge in box.tolist()]}")
print(why.heatmaps.shape, "from", why.where)

# %%
# How much of the red lies within the box? The picture says it below each heatmap, and ``within`` holds it. It is to be
# far above ``area``, the box's share of the image, which is what a heatmap without any meaning would have. A two-stage
# detector pools each box from its proposal, so that a heatmap keeps near the box, whatever the network has learnt.
# RetinaNet, FCOS and SSD read whole maps; there this says more.

for within, area in zip(why.within, why.area, strict=True):
    print(f"{within:.0%} of the red, {area:.0%} of the image")

# %%
# What the pyramid holds: the strongest maps of its fine level, where both shapes are found by most channels.

with fv.capture(detector, "backbone.fpn.layer_blocks.*") as maps, torch.no_grad():
    detector(images[:1])
fv.feature_maps(maps["backbone.fpn.layer_blocks.0"][0], top=12, ncols=6, title="The pyramid's fine level")

# %%
# The coarse level of the same image has half as many places along each side.

fv.feature_maps(maps["backbone.fpn.layer_blocks.1"][0], top=12, ncols=6, title="The pyramid's coarse level")

# %%
# The kernels of the first layer, as of any network.

fv.kernels(detector, "backbone.body.fine.0")

# %%
# An image without boxes has no heatmaps, and the picture says so.

fv.attributions(detector, 0.5 * torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))

# %%
# **Which map is it?** The default method for boxes is LayerCAM, at the maps that enter the detector's head: the latest
# ones that both the class and the place of a box are computed from. If a box reads several scales, their maps are
# joined, and the legend says so. ``layer=`` takes others. A heatmap is brought back to the image's own pixels if the
# model resizes and pads its images, as torchvision's do.
#
# **Which models?** Those of torchvision; the DETR family of transformers, whose outputs have ``logits`` and
# ``pred_boxes``, and whose queries have a page of their own; tensors as YOLO's exports return them, ``b n 4+1+c`` or
# ``b 4+c n``. For other outputs pass ``target=`` a callable. ``top=`` is the number of boxes, ``min_score=`` the lowest
# score where the model returns all candidates.
#
# From the shell: ``featviz why torchvision:fasterrcnn_mobilenet_v3_large_fpn --image street.jpg``.
