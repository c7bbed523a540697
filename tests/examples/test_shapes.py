"""The small detector of discs and squares: it finds them, and what speaks for a box lies within it.

No heatmap is cut off at a box anywhere: with a head of random weights, the same code gives the box's share of the area.
"""

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

import torch_featviz as fv
from examples import shapes

SCENES = range(8)


def share(heatmap, box):
    """Of what speaks for it, the part that lies within the box."""
    left, top, right, bottom = box.round().long().clamp(min=0).tolist()
    red = heatmap.clamp(min=0)
    return float(red[top:bottom, left:right].sum() / red.sum())


def area(box):
    return float((box[2:] - box[:2]).prod()) / shapes.SIDE**2


@pytest.fixture(scope="module")
def net():
    return shapes.trained()


@pytest.fixture(scope="module")
def found(net):
    """For each scene the image, what was drawn, and its boxes in that order: heatmaps and corners."""
    cases = []
    for seed in SCENES:
        image, drawn = shapes.scene(seed)
        why = fv.attribute(net, image)
        overlap = box_iou(drawn["boxes"], why.boxes.xyxy) * (drawn["labels"][:, None] == why.boxes.classes)
        assert bool((overlap.amax(1) > 0.5).all())
        cases.append((image, drawn, why, overlap.argmax(1)))
    return cases


def test_its_weights_are_small():
    assert shapes.WEIGHTS.stat().st_size < 200_000


def test_what_speaks_for_a_box_lies_within_it(found):
    shares = [share(why.heatmaps[i], why.boxes.xyxy[i]) for _, _, why, own in found for i in own]
    assert sum(shares) / len(shares) >= 0.8
    assert min(shares) >= 0.5
    said = [float(why.within[i]) for _, _, why, own in found for i in own]
    assert said == pytest.approx(shares, abs=0.05)  # pixels on the edge of a box count as far as it covers them


def test_each_box_has_a_map_of_its_own(found):
    """Swapping boxes swaps maps: in the other's box lies next to nothing."""
    swapped = []
    for _, _, why, own in found:
        if len(own) == 2:
            one, two = own.tolist()
            swapped += [share(why.heatmaps[a], why.boxes.xyxy[b]) for a, b in ((one, two), (two, one))]
    assert len(swapped) >= 12
    assert sum(swapped) / len(swapped) <= 0.1


def test_with_a_random_head_the_share_is_that_of_the_area(net, found):
    """The same candidates, by a callable: a random head finds no boxes."""
    shares, areas = [], []
    for seed, (image, _, why, own) in enumerate(found):
        for i in own.tolist():
            label = int(why.boxes.classes[i])
            with torch.no_grad():
                logits = Heads(net)(image[None])
            row = int((logits[0, :, label].sigmoid() - why.boxes.scores[i]).abs().argmin())
            same = fv.attribute(Heads(net), image[None], target=picked(row, label), **HOW)
            torch.testing.assert_close(same.heatmaps[0], why.heatmaps[i], rtol=1e-3, atol=1e-4)
            again = fv.attribute(Heads(randomised(net, seed)), image[None], target=picked(row, label), **HOW)
            shares.append(share(again.heatmaps[0], why.boxes.xyxy[i]))
            areas.append(area(why.boxes.xyxy[i]))
    mean, least = sum(shares) / len(shares), sum(areas) / len(areas)
    assert abs(mean - least) <= 0.06


HOW = {"method": "layercam", "layer": "net.backbone"}


def picked(row, label):
    return lambda logits: logits[:, row, label]


class Heads(nn.Module):
    """The detector up to the class logits of all candidates."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        batch, _ = self.net.transform(list(images))
        return self.net.head([self.net.backbone(batch.tensors)])["cls_logits"]


def randomised(net, seed):
    other = shapes.shapes_detector()
    other.load_state_dict(net.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in other.head.classification_head.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    return other.eval()


def test_the_script_trains_what_it_says():
    """Some steps: the loss falls."""
    torch.manual_seed(0)
    state = {name: weight.clone() for name, weight in shapes.shapes_detector().state_dict().items()}
    trained = shapes.train(steps=3, batch=2)
    assert state.keys() == trained.state_dict().keys() == shapes.trained().state_dict().keys()
    assert not torch.equal(
        state["head.classification_head.cls_logits.weight"],
        trained.state_dict()["head.classification_head.cls_logits.weight"],
    )
