"""What a segmenter says of each pixel, against nested loops; what is taken for one, and what is not."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.model.inputs import Inputs
from torch_featviz.model.masks import (
    Told,
    is_background,
    is_segmenters,
    mask_of,
    over_mask,
    pixel_scores,
    segmented,
    with_mask,
)
from torch_featviz.model.run import run

IMAGES = torch.zeros(2, 3, 8, 12)
SCORES = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))


@dataclass
class Output:
    logits: torch.Tensor
    loss: None = None


NOTHING = Told()


def said(scores, told=NOTHING, net=None):
    return segmented(scores, IMAGES[: len(scores)], net=net or nn.Identity(), told=told)


@pytest.mark.parametrize(
    "output",
    [
        SCORES,
        {"out": SCORES, "aux": SCORES + 1},
        OrderedDict(out=SCORES),
        {"logits": SCORES},
        Output(SCORES),
        namedtuple("Pair", "out aux")(SCORES, SCORES + 1),
    ],
)
def test_outputs_of_segmenters(output):
    assert pixel_scores(output, IMAGES) is SCORES
    assert is_segmenters(output, IMAGES)


@pytest.mark.parametrize(
    "output",
    [
        torch.rand(2, 4),  # a classifier's
        torch.rand(2, 4, 1, 1),
        torch.rand(3, 4, 8, 12),  # of other images
        torch.rand(2, 4, 0, 12),
        torch.zeros(2, 4, 8, 12, dtype=torch.long),
        torch.rand(2, 4, 8),
        {"logits": torch.rand(2, 4)},
        {"out": torch.rand(2, 4, 1, 1)},
        {"maps": SCORES},
        (SCORES, SCORES),
        [{"boxes": torch.rand(3, 4), "masks": torch.rand(3, 1, 8, 12)}] * 2,
        {"logits": torch.rand(2, 5, 4), "pred_boxes": torch.rand(2, 5, 4)},
        None,
    ],
)
def test_outputs_of_others(output):
    assert pixel_scores(output, IMAGES) is None


def test_what_is_much_coarser_than_the_image_is_a_feature_map():
    images = torch.zeros(1, 3, 64, 96)
    assert pixel_scores(torch.rand(1, 5, 8, 12), images) is not None
    assert pixel_scores(torch.rand(1, 5, 7, 12), images) is None
    assert pixel_scores({"logits": torch.rand(1, 5, 2, 3)}, images) is not None, "a name says what it is"
    assert pixel_scores(torch.rand(1, 5, 8, 12), images[:, :, 0]) is None


def test_queries_as_they_are_put_together_by_transformers():
    kinds, masks = torch.randn(2, 6, 5), torch.randn(2, 6, 8, 12)
    found = pixel_scores({"class_queries_logits": kinds, "masks_queries_logits": masks}, IMAGES)
    expected = torch.zeros(2, 4, 8, 12)
    for b in range(2):
        for q in range(6):
            chances = torch.softmax(kinds[b, q], 0)
            for n in range(4):
                expected[b, n] += chances[n] * torch.sigmoid(masks[b, q])
    torch.testing.assert_close(found, expected)
    answer = said({"class_queries_logits": kinds, "masks_queries_logits": masks})
    assert answer.kind == "figures"
    assert answer.values.shape == (2, 4)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9), st.sampled_from(["one", "labels"]))
def test_masks_and_shares_equal_loops(n, h, w, seed, kind):
    scores = torch.randn(2, n, h, w + 1, generator=torch.Generator().manual_seed(seed))
    scores[0, 0, 0, 0] = torch.nan
    told = Told("label_logits" if kind == "labels" else "logits")
    answer = said(scores, told)
    k = 2 if n == 1 and kind == "one" else n
    expected = torch.zeros(2, k, h, w + 1, dtype=torch.bool)
    for b in range(2):
        for y in range(h):
            for x in range(w + 1):
                pixel = scores[b, :, y, x].tolist()
                if any(value != value for value in pixel):
                    continue
                if kind == "labels":
                    has = [c for c in range(n) if pixel[c] > 0]
                else:
                    has = [int(pixel[0] > 0)] if n == 1 else [max(range(n), key=pixel.__getitem__)]
                for c in has:
                    expected[b, c, y, x] = True
    for c in range(k):
        assert torch.equal(answer.mask(torch.tensor([c, c])), expected[:, c])
    torch.testing.assert_close(answer.values, expected.flatten(2).float().mean(2))


def test_a_single_channel_of_probabilities_is_cut_at_one_half():
    scores = torch.tensor([0.2, 0.5, 0.51, 0.9]).view(1, 1, 2, 2)
    answer = said(scores, Told("probabilities"))
    assert answer.mask(torch.tensor([1])).flatten().tolist() == [False, False, True, True]
    with pytest.raises(OptionError, match="which may be logits or probabilities; set answer="):
        said(scores)
    with pytest.raises(
        OptionError, match="answer='figures' of a single channel has no classes; pass target= a callable"
    ):
        said(scores, Told("figures"))


def labelled(*labels):
    """Scores of which each row of pixels has these classes."""
    hot = torch.nn.functional.one_hot(torch.tensor(labels)[:, None], 4).movedim(-1, 1)
    return (hot * 9.0 - 3).float()


def test_the_largest_class_leaves_the_background_for_last():
    scores = labelled([0, 0, 0, 1, 2, 2], [0, 0, 0, 0, 0, 3])
    assert said(scores).largest().tolist() == [[0], [0]]
    named = said(scores, Told(names=["_background_", "a", "b", "c"]))
    assert named.background == 0
    assert named.largest().tolist() == [[2], [3]]
    assert named.largest(3).tolist() == [[2, 1], [3, 0]], "as many as occur in each image"
    assert said(labelled([0, 0]), Told(names=["background", "a", "b", "c"])).largest().tolist() == [[0]]
    assert said(scores, Told(published=["a", "background"])).background is None, "names of other outputs"
    assert said(scores, Told(published=["a", "b", "Background", "c"])).background == 2
    assert said(torch.randn(2, 1, 8, 12)).background == 0
    with pytest.raises(ShapeError, match="classes must name 4, as the model returns, got 2"):
        said(scores, Told(names=["a", "b"]))


def test_class_0_of_torchvisions_segmenters_is_the_background():
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    with torch.device("meta"):
        net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    assert said(SCORES, net=net).background == 0
    assert said(SCORES, Told(names="abcd"), net=net).background is None
    assert is_background("__background__")
    assert not is_background("foreground")


@pytest.mark.parametrize("kind", [None, "logits", "label_logits", "probabilities", "figures"])
def test_over_a_mask_a_network_returns_means(kind):
    net = nn.Conv2d(3, 4, 1)
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = net(images).double()
    mask = torch.rand(2, 8, 12, generator=torch.Generator().manual_seed(2)) > 0.6
    inputs = with_mask(Inputs(images), mask)
    assert mask_of(inputs) is mask
    assert [mask_of(Inputs(images)), mask_of(None)] == [None, None]
    expected = torch.zeros(2, 4)
    for b in range(2):
        for n in range(4):
            values = []
            for y in range(8):
                for x in range(12):
                    pixel = scores[b, :, y, x]
                    if mask[b, y, x]:
                        made = {
                            "logits": pixel.softmax(0),
                            "label_logits": pixel.sigmoid(),
                            "probabilities": pixel.clamp(0, 1),
                        }
                        values.append(float(made.get(kind, pixel)[n]))
            expected[b, n] = sum(values) / len(values)
    with torch.no_grad():
        found = run(over_mask(net, inputs, kind), inputs)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(run(net, inputs.rows(torch.tensor([1, 0, 1]))), expected[[1, 0, 1]])


def test_a_network_without_a_mask_is_left_alone():
    net = nn.Conv2d(3, 4, 1)
    assert over_mask(net, Inputs(IMAGES)) is net
    assert not net._forward_hooks


def test_other_pixels_than_before_are_refused():
    net, inputs = nn.Conv2d(3, 4, 3), with_mask(Inputs(IMAGES), torch.ones(2, 8, 12, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"the model returns \(6, 10\) pixels, and \(8, 12\) before"):
        run(over_mask(net, inputs), inputs)
    net = nn.Sequential(nn.Flatten(), nn.Linear(288, 2))
    with pytest.raises(ShapeError, match="the model returns no scores for each pixel any more"):
        run(over_mask(net, inputs), inputs)
