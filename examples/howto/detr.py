"""
DETR: its boxes, and where its queries look
===========================================

DETR has no anchors: a few learnt queries look at the image by cross-attention, and each answers with one box or with
"no object". Here transformers' ``DetrForObjectDetection``, made small, has learnt to find discs and squares;
``examples/shapes_detr.py`` draws the images and trained it. The published network is
``DetrForObjectDetection.from_pretrained("facebook/detr-resnet-50").eval()``, and all calls below are the same.
"""

# sphinx_gallery_thumbnail_number = 2
import torch

import torch_featviz as fv
from examples.shapes import scene
from examples.shapes_detr import normalised, trained_detr

model = trained_detr()
images = normalised(torch.stack([scene(seed)[0] for seed in (1, 2)]))
pixels = {"mean": (0.5,), "std": (0.25,)}  # how images are normalised: so they are drawn in their own colours

# %%
# The image with its boxes, then what speaks for each, best first. Names of classes are those of the model's
# configuration. The map is the encoder's, in which each place already knows of others: what speaks for a box is around
# it, too.

fv.attributions(model, images, value_range=pixels)

# %%
# Which query is each box the answer of? DETR suppresses no boxes, so that the score tells. In new images this small one
# finds 97 % of the shapes; two queries find the same shape about once in seven, where a shape is between their places.

why = fv.attribute(model, images)
with torch.no_grad():
    scores = model(images).logits.softmax(2)[..., :-1].amax(2)
queries = []
for image, box, label, score in zip(why.boxes.images, why.boxes.xyxy, why.boxes.classes, why.boxes.scores, strict=True):
    queries.append(int((scores[image] - score).abs().argmin()))
    name = model.config.id2label[int(label)]
    print(f"image {int(image)}, query {queries[-1]}: {name} {score:.0%} at {[round(edge) for edge in box.tolist()]}")

# %%
# Where do the queries of the first image's boxes look? Each row is a query in the last layer of the decoder, each tile
# a head of its cross-attention. Some heads look at the middle of the shape, others at its edges, which tell the box.

layer = "model.decoder.layers.1.encoder_attn"
chosen = [query for query, image in zip(queries, why.boxes.images, strict=True) if image == 0]
fv.attention(model, images[:1], layer, queries=chosen, value_range=pixels)

# %%
# How much of a query's attention lies within its own box? The weights are captured like any other output, ``images
# heads queries places``; here the mean over the heads. Even attention would have the box's share of the image.

with fv.capture(model, layer, of="attention") as attention, torch.no_grad():
    model(images)
weights = attention[layer].mean(1).unflatten(2, (12, 12))
for image, query, box in zip(why.boxes.images, queries, why.boxes.xyxy, strict=True):
    left, top, right, bottom = (box / 8).round().long().clamp(0, 12).tolist()
    share, area = weights[image, query, top:bottom, left:right].sum(), (bottom - top) * (right - left) / 144
    print(f"image {int(image)}, query {query}: {share:.0%} of its attention within its box, {area:.0%} of the image")

# %%
# The encoder's own attention is drawn in the same way: what a place of the image looks at, here the middle of a shape.

middle = why.boxes.xyxy[0].view(2, 2).mean(0).flip(0).div(8).long().tolist()
fv.attention(model, images[:1], "model.encoder.layers.0.self_attn", queries=tuple(middle), value_range=pixels)
