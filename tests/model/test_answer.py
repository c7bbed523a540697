"""The one judgement of what a model says, against numpy and scores written by hand."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_featviz.errors import DtypeError, OptionError, ShapeError
from torch_featviz.model.answer import Answer, answer_of, classes_of, end_of, ending, scores_of
from torch_featviz.model.inputs import Inputs

PRECISION = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-9}


def softmax(rows):
    rows = np.exp(rows - rows.max(1, keepdims=True))
    return rows / rows.sum(1, keepdims=True)


def far(found, expected):
    return float((found.double() - expected.double()).abs().max())


@st.composite
def logits(draw):
    b, n = draw(st.integers(1, 5)), draw(st.integers(2, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(st.floats(0.1, 8)) * random.standard_normal((b, n))
    rows[0, 0] = draw(st.sampled_from([-2.0, 3.0]))  # of what lies within 0 and 1 values alone do not tell
    return rows


@given(logits(), st.sampled_from([*PRECISION]), st.integers(0, 2**32))
def test_probabilities_stay_what_they_are_and_logits_become_them(rows, dtype, seed):
    given = torch.tensor(rows).to(dtype)
    expected = torch.tensor(softmax(given.double().numpy()))
    of_logits = answer_of(given, len(rows))
    assert of_logits.kind == "logits"
    assert far(of_logits.values, expected) < 1e-5
    of_chances = answer_of(expected.to(dtype), len(rows))
    assert of_chances.kind == "probabilities"
    assert far(of_chances.values, expected) <= PRECISION[dtype]
    again = answer_of(of_chances.values, len(rows))
    assert again.values.equal(of_chances.values), "asking twice changes nothing"
    order = np.random.default_rng(seed).permutation(rows.shape[1])
    for answer, scores in ((of_logits, given), (of_chances, expected.to(dtype))):
        moved = answer_of(scores[:, order], len(rows))
        assert moved.kind == answer.kind
        assert far(moved.values, answer.values[:, order]) < 1e-6
        broken = torch.cat([scores, torch.full_like(scores[:1], torch.nan)])
        beside = answer_of(broken, len(broken))
        assert beside.kind == answer.kind, "a broken row says nothing of the others"
        assert beside.values[:-1].equal(answer.values)
        assert beside.values[-1].isnan().all()


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6), st.booleans())
def test_one_logit_speaks_of_two_classes(values, flat):
    scores = torch.tensor(values, dtype=torch.float64)
    answer = answer_of(scores if flat else scores[:, None], len(values), said="logits")
    assert answer.binary
    expected = softmax(np.stack([np.zeros(len(values)), np.array(values)], 1))
    torch.testing.assert_close(answer.values, torch.tensor(expected))
    chances = Answer(torch.tensor(expected)[:, 1:], "probabilities").values
    torch.testing.assert_close(chances, torch.tensor(expected))
    labels = Answer(scores[:, None], "label_logits")
    torch.testing.assert_close(labels.values[:, 0], torch.tensor(expected)[:, 1])


@pytest.mark.parametrize(
    ("scores", "options", "kind"),
    [
        ([[0.9, 0.05, 0.05]], {}, "probabilities"),
        ([[0.34, 0.33, 0.33], [1.0, 0.0, 0.0]], {}, "probabilities"),
        ([[0.9, 0.05, 0.05], [3.0, 1.0, 0.0]], {}, "logits"),
        ([[-5.0], [5.0]], {}, "logits"),
        ([-5.0, 5.0], {}, "logits"),
        ([[-5.0], [5.0]], {"named": False}, "figures"),
        ([[0.5], [0.6]], {"ended": lambda: "sigmoid"}, "probabilities"),
        ([[0.5], [0.6]], {"ended": lambda: "linear"}, "logits"),
        ([[0.98, 0.95]], {"ended": lambda: "sigmoid"}, "label_probabilities"),
        ([[0.98, 0.95]], {"ended": lambda: "linear"}, "logits"),
        ([[0.3, 0.2]], {"ended": lambda: "softmax"}, "probabilities"),
        ([[0.98, 0.95]], {"unsure": "figures"}, "figures"),
        ([[0.98, 0.95]], {"said": "label_logits"}, "label_logits"),
        ([[0.3, 0.2]], {"said": "probabilities"}, "probabilities"),
        ([[torch.nan, 0.2]], {}, "logits"),
        ([[-torch.inf, 0.2]], {}, "logits"),
    ],
)
def test_kinds(scores, options, kind):
    assert answer_of(torch.tensor(scores), len(scores), **options).kind == kind


@pytest.mark.parametrize(
    ("scores", "said", "words"),
    [
        (
            [[0.98, 0.95]],
            None,
            r"scores lie from 0\.95 to 0\.98 and rows do not sum to 1, which may be logits or probabilities; set",
        ),
        (
            [[0.98]],
            None,
            r"scores lie from 0\.98 to 0\.98, which may be logits or probabilities; set answer='logits' or",
        ),
        ([[2.0, 0.0]], "probabilities", r"answer='probabilities', but the scores lie from 0 to 2; .* answer='logits'"),
        (
            [[2.0, 0.0]],
            "label_probabilities",
            "answer='label_probabilities', but the scores lie from 0 to 2; scores outside 0 to 1 need",
        ),
        ([[0.9, 0.8]], "probabilities", r"a row sums to 1\.7 instead of 1; .* answer='label_probabilities'"),
        ([[0.9, 0.8]], "chances", "answer must be one of logits, probabilities, .* got 'chances'"),
    ],
)
def test_what_nobody_can_tell_is_asked(scores, said, words):
    with pytest.raises(OptionError, match=words):
        answer_of(torch.tensor(scores), 1, said=said)


class Named(NamedTuple):
    logits: Tensor
    aux: Tensor


@dataclass
class Held:
    logits: Tensor
    loss: Tensor | None = None


SCORES = torch.tensor([[1.0, -2.0, 3.0], [0.0, 1.0, 2.0]])


@pytest.mark.parametrize(
    "output",
    [
        SCORES,
        {"logits": SCORES, "hidden": SCORES + 1},
        {"out": SCORES, "aux": SCORES + 1},
        {"scores": SCORES},
        (SCORES,),
        Named(SCORES, SCORES + 1),
        Held(SCORES),
        Held(SCORES, torch.zeros(())),
    ],
)
def test_scores_are_found_in_what_a_model_returns(output):
    assert scores_of(output, 2) is SCORES


@pytest.mark.parametrize(
    ("output", "count", "error", "words"),
    [
        (
            torch.zeros(3),
            1,
            ShapeError,
            r"the model returns shape \(3,\) for 1 image: the first axis must be the batch\. Keep the batch axis,",
        ),
        (
            torch.zeros(8, 5),
            2,
            ShapeError,
            r"the model returns shape \(8, 5\) for 2 images: the first axis must be the batch\. Keep the batch axis,",
        ),
        (torch.zeros(2, 5), 8, ShapeError, r"shape \(2, 5\) for 8 images"),
        (torch.zeros(2, 5, 4, 4), 2, ShapeError, r"shape \(2, 5, 4, 4\); pass target= a callable"),
        (torch.zeros(()), 2, ShapeError, r"shape \(\); pass target="),
        (torch.zeros(2, 0), 2, ShapeError, r"shape \(2, 0\)"),
        ({"a": SCORES, "b": SCORES}, 2, DtypeError, r"returns a dict; pass target= .* \(it has 'a', 'b'\)"),
        ({"out": torch.zeros(2, 5, 4, 4)}, 2, DtypeError, "returns a dict; pass target="),
        ((SCORES, SCORES), 2, DtypeError, "returns a tuple; pass target="),
        ([{"boxes": SCORES, "scores": SCORES}], 1, DtypeError, "returns a list"),
        (None, 1, DtypeError, "returns a NoneType"),
    ],
)
def test_rows_that_are_not_the_images(output, count, error, words):
    with pytest.raises(error, match=words):
        scores_of(output, count)


def test_one_figure_of_one_image_may_have_lost_its_axes():
    assert scores_of(torch.tensor(4.0), 1).tolist() == [[4.0]]


@pytest.mark.parametrize(
    ("head", "end"),
    [
        (nn.Identity(), "linear"),
        (nn.Softmax(1), "softmax"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.LogSoftmax(1), "linear"),
        (nn.Tanh(), None),
        (nn.Hardsigmoid(), None),
    ],
)
def test_how_scores_are_made(head, end):
    class Mean(nn.Module):
        """As test-time augmentation does."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))

        def forward(self, x):
            a, b = (head(self.scale * self.net(each)) for each in (x, x.flip(3)))
            return torch.stack([a, b]).mean(0)

    images = torch.rand(1, 1, 5, 5)
    assert ending(Mean(), Inputs(images)) == end
    plain = nn.Sequential(nn.Flatten(), nn.Linear(25, 3), head)
    assert ending(plain.requires_grad_(False), Inputs(images)) == end
    with torch.no_grad():
        assert end_of(plain(images)) is None, "without a graph nothing is known"


def test_values_that_were_gated_are_of_no_kind():
    x = torch.randn(2, 3, requires_grad=True)
    assert end_of(torch.cat([x.sigmoid(), 1 - x.sigmoid()])) == "sigmoid"
    assert end_of(x.sigmoid() * (x @ x.T).sum()) is None
    assert end_of(torch.where(x > 0, x.sigmoid(), x)) is None


def test_classes_of_one_logit():
    scores = torch.tensor([[0.3], [-2.0]])
    assert classes_of(None, scores, 2) is None
    assert classes_of([0, 1], scores, 2).tolist() == [0, 1]
    assert classes_of(0, scores, 2, "figures").tolist() == [0, 0]
    with pytest.raises(OptionError, match=r"target must be from 0 to 1, got \[2, 2\]"):
        classes_of(2, scores, 2)
    with pytest.raises(OptionError, match=r"target must be from 0 to 0, got \[1, 1\]"):
        classes_of(1, scores, 2, "figures")


@pytest.mark.parametrize(
    ("n", "kind", "classes", "names"),
    [
        (1, "logits", (), ("class 0", "class 1")),
        (1, "logits", ("cat",), ("not cat", "cat")),
        (1, "probabilities", ("dog", "cat"), ("dog", "cat")),
        (1, "figures", (), ("output",)),
        (1, "label_logits", ("cat",), ("cat",)),
        (2, "figures", (), ("output 0", "output 1")),
        (2, "label_logits", (), ("label 0", "label 1")),
        (2, "logits", "ab", ("a", "b")),
    ],
)
def test_names(n, kind, classes, names):
    answer = Answer(torch.zeros(1, n), kind)
    assert answer.names(classes) == names
    assert answer.values.shape == (1, len(names))
    with pytest.raises(ShapeError, match=r"classes must name .* got 3"):
        answer.names("abc")


@pytest.mark.parametrize("kind", ["logits", "probabilities", "label_logits", "label_probabilities"])
@pytest.mark.parametrize("columns", [1, 4])
def test_log_odds_are_those_of_the_values(kind, columns):
    scores = torch.randn(5, columns, dtype=torch.float64)
    if "probabilities" in kind:
        scores = scores.softmax(1) if kind == "probabilities" and columns > 1 else scores.sigmoid()
    answer = Answer(scores, kind)
    for k in range(answer.values.shape[1]):
        p = answer.values[:, k]
        assert torch.allclose(answer.log_odds(torch.full((5,), k)), (p / (1 - p)).log())
