"""The small DETR of discs and squares: it finds them in new images, and what it looks at lies within its boxes."""

from itertools import permutations

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torchvision.ops import box_iou

import torch_featviz as fv
from examples import shapes, shapes_detr

SCENES = range(40)
CROSS = "model.decoder.layers.1.encoder_attn"


@pytest.fixture(scope="module")
def net():
    return shapes_detr.trained_detr()


@pytest.fixture(scope="module")
def drawn():
    scenes = [shapes.scene(seed) for seed in SCENES]
    return shapes_detr.normalised(torch.stack([image for image, _ in scenes])), [truth for _, truth in scenes]


@pytest.fixture(scope="module")
def answers(net, drawn):
    """Of each image the queries that found an object: their number, box and class; and all cross-attention."""
    images, _ = drawn
    with fv.capture(net, CROSS, of="attention") as attention, torch.no_grad():
        output = net(images)
    scores, classes = output.logits.softmax(2)[..., :-1].max(2)
    middle, size = output.pred_boxes.split(2, 2)
    corners = shapes.SIDE * torch.cat([middle - size / 2, middle + size / 2], 2)
    found = [(own := (each > 0.5).nonzero()[:, 0], corners[i, own], classes[i, own]) for i, each in enumerate(scores)]
    return found, attention[CROSS].mean(1).unflatten(2, (12, 12))


def test_its_weights_are_small():
    assert shapes_detr.WEIGHTS.stat().st_size < 200_000


def test_it_finds_shapes_in_new_images(drawn, answers):
    hits, boxes = [], 0
    for truth, (_, corners, classes) in zip(drawn[1], answers[0], strict=True):
        overlap = box_iou(truth["boxes"], corners) * (truth["labels"][:, None] - 1 == classes)
        hits += (overlap.amax(1) > 0.5).tolist()
        boxes += len(corners)
    assert sum(hits) / len(hits) >= 0.95
    assert boxes <= 1.25 * len(hits)  # some shapes are found by two queries


def test_a_query_looks_at_its_box(answers):
    """The share of its attention within the box, by the parts of 8 × 8 pixels that are in it."""
    found, attention = answers
    shares, areas, elsewhere = [], [], []
    for rows, (queries, corners, _) in zip(attention, found, strict=True):
        masks = [_within(box) for box in corners.tolist()]
        for own, query in enumerate(queries.tolist()):
            shares.append(float((rows[query] * masks[own]).sum()))
            areas.append(float(masks[own].mean()))
            others = [n for n, box in enumerate(corners) if not box_iou(corners[own : own + 1], box[None])]
            elsewhere += [float((rows[query] * masks[other]).sum()) for other in others]
    assert sum(shares) / len(shares) >= 4 * sum(areas) / len(areas)
    assert len(elsewhere) >= len(SCENES)
    assert sum(elsewhere) / len(elsewhere) <= 0.5 * sum(areas) / len(areas)


def _within(box):
    mask = torch.zeros(1, 1, shapes.SIDE, shapes.SIDE)
    left, top, right, bottom = (max(0, round(edge)) for edge in box)
    mask[..., top:bottom, left:right] = 1
    return F.avg_pool2d(mask, 8)[0, 0]


def test_the_boxes_are_found_and_explained_without_arguments(net, drawn, answers):
    images, _ = drawn
    why = fv.attribute(net, images[:2], min_score=0.5)
    expected = [len(found[0]) for found in answers[0][:2]]
    assert torch.bincount(why.boxes.images, minlength=2).tolist() == expected
    assert why.heatmaps.abs().amax((1, 2)).min() > 0


def test_each_shape_belongs_to_one_query():
    """Of all ways to give shapes to queries the nearest one, found by trying all."""
    _, classes, boxes = shapes_detr.drawings(6)
    places = [((column + 0.5) / 3, (row + 0.5) / 3) for row in range(3) for column in range(3)]
    for own, corners in zip(classes, boxes, strict=True):
        queries = (own != shapes_detr.NO_OBJECT).nonzero()[:, 0].tolist()
        middles = [corners[query, :2].tolist() for query in queries]

        def apart(ways, middles=middles):
            return sum(
                (x - places[q][0]) ** 2 + (y - places[q][1]) ** 2 for (x, y), q in zip(middles, ways, strict=True)
            )

        assert apart(queries) == pytest.approx(min(map(apart, permutations(range(9), len(queries)))), abs=1e-6)


def test_the_script_trains_what_it_says():
    """Some steps: only what is learnt changes."""
    net = shapes_detr.train(steps=2, batch=2, count=4)
    frozen, kept = net.model.backbone.state_dict(), shapes_detr.trained_detr().model.backbone.state_dict()
    assert all(torch.equal(frozen[name], kept[name]) for name in kept)
    learnt = {name for name, weight in net.named_parameters() if weight.requires_grad}
    assert learnt == set(load_file(shapes_detr.WEIGHTS))
