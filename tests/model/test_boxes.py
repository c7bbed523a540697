"""Boxes found in what a detector returns, beside rules applied by hand, and torchvision's suppression."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torchvision.ops import batched_nms

from torch_featviz.errors import OptionError, ShapeError
from torch_featviz.model.boxes import find_boxes, names_in, of_each
from torch_featviz.model.logits import own_logit, own_logits

SIZE = (40, 60)  # rows and columns


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Queries:
    logits: torch.Tensor
    pred_boxes: torch.Tensor
    last_hidden_state: torch.Tensor


def test_final_boxes_are_taken_as_they_are():
    found = {"boxes": noise(3, 4), "labels": torch.tensor([4, 5, 6]), "scores": torch.tensor([0.2, 0.9, 0.01])}
    for output in ([found], (found,), found):
        boxes = find_boxes(output, SIZE)
        assert boxes.classes.tolist() == [5, 4, 6]
        assert torch.equal(boxes.xyxy, found["boxes"][[1, 0, 2]])
        assert torch.equal(boxes.scores, found["scores"][[1, 0, 2]])


@pytest.mark.parametrize("answer", [None, "logits", "label_logits"])
@pytest.mark.parametrize("kind", ["dataclass", "dictionary", "named tuple"])
@pytest.mark.parametrize("classes", [None, 4, 5])
def test_queries(kind, classes, answer):
    logits, places = 4 * noise(1, 7, 5) - 2, noise(1, 7, 4, seed=1)
    if kind == "dataclass":
        output = Queries(logits, places, noise(1, 7, 8))
    elif kind == "dictionary":
        output = {"pred_logits": logits, "pred_boxes": places}
    else:
        output = namedtuple("Output", ["logits", "pred_boxes"])(logits, places)
    boxes = find_boxes(output, SIZE, classes=classes, answer=answer, min_score=0.3)
    exclusive = classes == 4 or (classes is None and kind == "dictionary")
    exclusive = exclusive if answer is None else answer == "logits"
    expected = []
    for row, (x, y, w, h) in zip(logits[0], places[0].tolist(), strict=True):
        scores = row.softmax(0)[:4] if exclusive else row.sigmoid()
        k = int(scores.argmax())
        if scores[k] >= 0.3:
            edges = [(x - w / 2) * 60, (y - h / 2) * 40, (x + w / 2) * 60, (y + h / 2) * 40]
            expected.append((float(scores[k]), k, edges, float(row[k])))
    expected.sort(reverse=True)
    assert boxes.classes.tolist() == [k for _, k, _, _ in expected]
    assert boxes.scores.tolist() == pytest.approx([score for score, *_ in expected])
    assert boxes.figures.tolist() == pytest.approx([figure for *_, figure in expected])
    for found, (_, _, edges, _) in zip(boxes.xyxy.tolist(), expected, strict=True):
        assert found == pytest.approx(edges, abs=1e-4)


@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.integers(1, 3))
def test_rows_of_a_yolo_are_what_torchvision_suppresses(seed, objects, shares, classes):
    n = 30
    rows = noise(n, 4 + objects + classes, seed=seed)
    rows[:, 2:4] *= 0.5
    if not shares:
        rows[:, [0, 2]] *= 60
        rows[:, [1, 3]] *= 40
        rows[0, 0] = 30
    scores, labels = rows[:, 4 + objects :].max(1)
    if objects:
        scores = scores * rows[:, 4]
    by = torch.tensor([60.0, 40.0] * 2) if shares else 1
    edges = torch.cat([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], 1) * by
    kept = scores >= 0.25
    order = batched_nms(edges[kept], scores[kept], labels[kept], 0.5)
    output = rows[None] if objects else rows.t()[None]
    found = find_boxes((output, [noise(1, 9, 5, 5)]), SIZE)
    assert torch.allclose(found.xyxy, edges[kept][order])
    assert torch.equal(found.classes, labels[kept][order])
    assert torch.equal(found.scores, scores[kept][order])
    own = rows[kept][order]
    expected = own[:, 4] if objects and classes == 1 else own.gather(1, found.classes[:, None] + 4 + objects)[:, 0]
    assert torch.equal(found.figures, expected)


@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.integers(1, 9), st.integers(1, 30))
def test_the_number_of_names_tells_how_rows_are_read(seed, objects, columns_first, classes, n):
    """Whichever way they stand, and also of fewer boxes than columns."""
    columns = 4 + objects + classes
    assume(n not in (columns, columns - 1, columns + 1))
    rows = noise(n, columns, seed=seed)
    rows[:, 2:4] *= 0.1
    scores, labels = rows[:, 4 + objects :].max(1)
    scores = scores * rows[:, 4] if objects else scores
    output = rows.t()[None] if columns_first else rows[None]
    found = find_boxes(output, SIZE, named=classes, min_score=0)
    assert len(found.scores) <= n
    for score, label, place in zip(found.scores, found.classes, found.xyxy, strict=True):
        row = int((scores - score).abs().argmin())
        assert (scores[row], labels[row]) == (score, label)
        middle = rows[row, :2] * torch.tensor([60.0, 40.0])
        assert torch.allclose((place[:2] + place[2:]) / 2, middle, atol=1e-4)
    order = [int((found.scores - score).abs().argmin()) for score in scores[scores.argsort(descending=True)[:1]]]
    assert order == [0]


@given(st.integers(0, 10_000), st.integers(1, 9), st.booleans(), st.sampled_from((-2, -1, 2, 3)))
def test_another_number_of_names_is_refused(seed, classes, objects, more):
    rows = noise(40, 4 + objects + classes, seed=seed)
    named = classes + more
    assume(named > 0 and named not in (classes, classes + objects, classes + objects - 1))
    assume(4 + classes + objects - 5 > 0)
    with pytest.raises(
        ShapeError, match=f"classes must name {classes + objects - 1} or {classes + objects}, got {named}"
    ):
        find_boxes(rows[None], SIZE, named=named)


def test_rows_that_end_in_whole_numbers_are_final():
    rows = torch.tensor([[[1, 2, 30, 20, 0.3, 2], [0, 0, 5, 5, 0.8, 7], [0, 0, 0, 0, 0, 0]]])
    found = find_boxes(rows, SIZE)
    assert found.classes.tolist() == [7, 2]
    assert found.xyxy.tolist() == [[0, 0, 5, 5], [1, 2, 30, 20]]


@pytest.mark.parametrize(
    "output",
    [
        noise(1, 5),  # classes
        noise(1, 3, 8, 8),  # a map
        torch.randn(1, 17, 8, generator=torch.Generator().manual_seed(0)),  # tokens
        noise(1, 9, 9),  # nobody can tell rows from columns
        noise(1, 20, 5),  # no class
        -noise(1, 20, 8),  # widths below 0
        noise(2, 20, 8),  # two images
        torch.ones(1, 20, 8, dtype=torch.long),
        {"boxes": noise(3, 4), "scores": noise(3)},
        {"logits": noise(1, 3, 4), "pred_boxes": noise(1, 2, 4)},
        {"logits": noise(3, 4), "pred_boxes": noise(1, 3, 4)},
        [{"boxes": noise(3, 4), "labels": [1, 2, 3], "scores": noise(3)}],
        None,
        [],
    ],
    ids=range(14),
)
def test_what_holds_no_boxes(output):
    assert find_boxes(output, SIZE) is None


# From the score back to the logit


def scored(logits, how):
    """Scores as detectors make them of logits, at whatever precision they lose."""
    if how == "sigmoid":
        return logits.sigmoid()
    if how == "softmax":
        return logits.softmax(1)
    if how == "sigmoid of parts":
        return torch.cat([part.sigmoid() for part in logits.split([2, 3])])
    other = torch.linspace(-2, 2, len(logits), requires_grad=True)[:, None]
    return (logits.sigmoid() * other.sigmoid()).sqrt() if how == "weighed" else logits


@pytest.mark.parametrize("how", ["sigmoid", "softmax", "sigmoid of parts", "weighed", "logits"])
@pytest.mark.parametrize("scale", [1, 60])  # saturated: the gradient of the score itself is 0
def test_the_logit_is_found_behind_the_score(how, scale):
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = scale * torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    logits = features @ weight
    scores = scored(logits, how)
    picked = scores.flatten()[scores.flatten().argsort(descending=True)[:7]]
    for rank, score in enumerate(picked):
        place = scores.flatten().argsort(descending=True)[rank]
        if scale == 60 and how != "logits" and bool((scores.flatten() == score.detach()).sum() > 1):
            continue  # several of the same score: which is which is not told by it
        edge, first = own_logit(score)
        (found,) = torch.autograd.grad([edge], [features], [first], retain_graph=True)
        (expected,) = torch.autograd.grad(logits.flatten()[place], features, retain_graph=True)
        torch.testing.assert_close(found, expected)
    together = own_logits(picked[:1] if scale == 60 else picked)
    assert len(together) == (1 if scale == 60 else 7)
    for place, (edge, first) in zip(scores.flatten().argsort(descending=True), together, strict=False):
        (found,) = torch.autograd.grad([edge], [features], [first], retain_graph=True)
        (expected,) = torch.autograd.grad(logits.flatten()[place], features, retain_graph=True)
        torch.testing.assert_close(found, expected)


def test_logits_of_two_scales_are_told_apart():
    one, two = (torch.randn(1, 4, n, requires_grad=True) for n in (5, 3))
    layers = [nn.Conv1d(4, 2, 1), nn.Conv1d(4, 2, 1)]
    scores = torch.cat([layer(x).transpose(1, 2) for layer, x in zip(layers, (one, two), strict=True)], 1).sigmoid()
    edge, first = own_logit(scores[0, 6, 1])
    assert edge.node.name().startswith("Conv")
    assert torch.autograd.grad([edge], [one], [first], retain_graph=True, allow_unused=True) == (None,)
    (found,) = torch.autograd.grad([edge], [two], [first])
    assert found[0, :, 1].tolist() == layers[1].weight[1, :, 0].tolist()
    (_, of_one), (other, of_two) = own_logits(torch.stack([scores[0, 2, 0], scores[0, 6, 1]]))
    assert (other.node, of_one.nonzero().tolist(), of_two.nonzero().tolist()) == (edge.node, [[0, 0, 2]], [[0, 1, 1]])


def test_boxes_of_a_rank_share_a_gradient():
    """Of the first image two boxes, of the second one, of the third none, of the fourth three."""
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scores, counts = logits.neg().sigmoid(), [2, 1, 0, 3]
    places = [(0, 4), (0, 1), (1, 1), (3, 0), (3, 5), (3, 2)]
    found = own_logits(torch.stack([scores[place] for place in places]), counts)
    of_rank = [ones for _, ones in found]
    assert of_rank[0] is of_rank[2] is of_rank[3]
    assert of_rank[1] is of_rank[4]
    assert [ones.nonzero().tolist() for ones in (of_rank[0], of_rank[1], of_rank[5])] == [
        [[0, 4], [1, 1], [3, 0]],
        [[0, 1], [3, 5]],
        [[3, 2]],
    ]


def test_logits_are_found_behind_parts_that_come_together_again(monkeypatch):
    """Both parts of a split lead back to it, one of them twice; the third is not used. All are found together."""
    features = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    first, _, last = features.neg().split(2, 1)
    scores = torch.cat([last, first[:, :1], last[:, 1:]], 1).sigmoid().flatten()
    monkeypatch.setattr("torch_featviz.model.logits.own_logit", None)
    for place, (edge, one) in zip([16, 21, 1], own_logits(scores[[0, 13, 9]]), strict=True):
        (found,) = torch.autograd.grad([edge], [features], [one], retain_graph=True)
        assert found.flatten().nonzero().tolist() == [[place]]
        assert found.flatten()[place] == -1


def test_boxes_of_one_number_are_told_apart_one_by_one():
    """Two boxes of one score, as where every class of a place has a box of its own."""
    logits = torch.randn(5, requires_grad=True)
    scores = logits.sigmoid()[[3, 3, 1]]
    places = [first.nonzero()[0].tolist() for _, first in own_logits(scores)]
    assert places == [[3], [3], [1]]


def test_scores_without_a_gradient_are_refused():
    with pytest.raises(OptionError, match="no gradient reaches the scores of the boxes: the model computes them from"):
        own_logit(torch.tensor(0.3))
    logits = torch.full((3,), -torch.inf, requires_grad=True)
    with pytest.raises(OptionError, match="because its score is 0; raise min_score"):
        own_logit((logits.sigmoid() * (logits - logits).nan_to_num(0))[0])


def test_names_of_a_configuration():
    net = nn.Identity()
    assert names_in(net) == ()
    net.config = type("Config", (), {"id2label": {0: "cat", 1: "dog"}})()
    assert names_in(net) == ("cat", "dog")
    net.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    assert names_in(net) == ()


def test_what_is_returned_for_several_images_is_told_apart():
    rows, shared = noise(3, 5, 6), torch.arange(7)
    for number, one in enumerate(of_each({"logits": rows, "anchors": shared, "name": "x"}, 3)):
        assert one["name"] == "x"
        assert torch.equal(one["logits"], rows[number : number + 1])
        assert torch.equal(one["anchors"], shared)
    each = [{"boxes": rows[0]}, {"boxes": rows[1]}]
    assert of_each(each, 2) == each
    with pytest.raises(ShapeError, match="what the model returned holds no row for each of 4 images"):
        of_each(rows, 4)


@pytest.mark.parametrize("axis", [1, 2])
def test_what_a_softmax_made_is_no_box(axis):
    assert find_boxes(noise(1, 20, 7).softmax(axis), SIZE) is None
    assert find_boxes(noise(1, 7, 20).softmax(axis), SIZE) is None


def test_logits_that_are_single_numbers():
    weights = torch.tensor([0.3, -0.2], requires_grad=True)
    scores = torch.stack([(weights[0] * 2).sigmoid(), (weights[1] * 3).sigmoid()])
    slopes = [torch.autograd.grad([edge], [weights], [one], retain_graph=True)[0] for edge, one in own_logits(scores)]
    assert torch.equal(torch.stack(slopes), torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
