"""Mistakes in how a loss is put together, read from its graph; each beside the same loss as it should be."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_featviz.errors import FindingWarning
from torch_featviz.training import Monitor
from torch_featviz.training.criterion import mistake_of

LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.fixture
def scores():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5))(torch.randn(6, 3))


@pytest.fixture
def answers():
    torch.manual_seed(0)
    return nn.Linear(3, 1)(torch.randn(6, 3))


TARGETS = torch.arange(6.0)


def mistake(loss):
    found = mistake_of(loss)
    return None if found is None else found.mistake


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: F.cross_entropy(x.softmax(1), LABELS),
        lambda x: F.cross_entropy(x.softmax(1), LABELS) / 8,
        lambda x: F.cross_entropy(x.sigmoid(), LABELS),
        lambda x: F.cross_entropy(x.softmax(1), LABELS, weight=torch.ones(5), label_smoothing=0.1),
        lambda x: F.cross_entropy(x.softmax(1), F.one_hot(LABELS, 5).float()),
        lambda x: F.cross_entropy(x.softmax(1).view(2, 3, 5).flatten(0, 1), LABELS),
        lambda x: F.cross_entropy(x.softmax(1).view(2, 3, 5).transpose(1, 2), LABELS.view(2, 3)),
        lambda x: F.cross_entropy(x.softmax(1).to(torch.bfloat16), LABELS),
        lambda x: x.square().mean() + 0.1 * F.cross_entropy(x.softmax(1), LABELS),
        lambda x: F.binary_cross_entropy_with_logits(x.sigmoid(), torch.ones(6, 5)),
        lambda x: F.binary_cross_entropy_with_logits(x.sigmoid(), torch.ones(6, 5), reduction="none").mean(),
        lambda x: (-x.softmax(1).log_softmax(1)[range(6), LABELS]).mean(),
    ],
)
def test_what_went_through_a_softmax_already(scores, loss):
    assert mistake(loss(scores)) == "twice"


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: F.nll_loss(x, LABELS),
        lambda x: F.nll_loss(x.softmax(1), LABELS),
        lambda x: F.nll_loss(x.sigmoid(), LABELS) + x.square().mean(),
        lambda x: F.nll_loss(nn.Conv1d(6, 5, 1)(x[None]), LABELS[None, :5]),
    ],
)
def test_nll_loss_of_what_is_no_logarithm(scores, loss):
    assert mistake(loss(scores)) == "no_logarithm"


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: ((x - y) ** 2).mean(),
        lambda x, y: (y - x).abs().mean(),
        lambda x, y: 2 * torch.mean((x - y).square()),
        lambda x, y: (x - y).pow(2).sum() / 6,
        lambda x, y: ((x - y) * (x - y)).mean(),
        lambda x, y: (d := x - y).mul(d).mean(),
        lambda x, y: F.mse_loss(x, y),
        lambda x, y: F.l1_loss(x, y),
        lambda x, y: F.smooth_l1_loss(x, y),
        lambda x, y: F.huber_loss(x, y),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_answers_that_are_compared_with_all_targets(answers, loss):
    assert mistake(loss(answers, TARGETS)) == "broadcast"
    assert mistake(loss(answers, TARGETS[:, None])) is None
    assert mistake(loss(answers[:, 0], TARGETS)) is None
    assert mistake(loss(answers[:1], TARGETS[:1])) is None  # of one alone it is the same


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: F.cross_entropy(x, LABELS),
        lambda x: F.cross_entropy(x * 16, LABELS, label_smoothing=0.1),
        lambda x: F.cross_entropy(x.log_softmax(1), LABELS),  # once or twice is the same
        lambda x: F.nll_loss(x.log_softmax(1), LABELS),
        lambda x: F.nll_loss(x.softmax(1).log(), LABELS),
        lambda x: F.nll_loss((x.softmax(1) + 1e-6).log(), LABELS),
        lambda x: F.binary_cross_entropy(x.sigmoid(), torch.ones(6, 5)),
        lambda x: F.binary_cross_entropy_with_logits(x, torch.ones(6, 5)),
        lambda x: F.kl_div(x.log_softmax(1), x.detach().softmax(1), reduction="batchmean"),
        lambda x: F.mse_loss(x.softmax(1), F.one_hot(LABELS, 5).float()),
        lambda x: F.cross_entropy(x.softmax(1) @ x.t(), LABELS),  # attention
        lambda x: F.cross_entropy(nn.Linear(5, 5)(x.softmax(1)), LABELS),
        lambda x: (x @ x.t() - torch.eye(6)).square().mean(),
        lambda x: (x[:, :1] - x[:, :1].t()).square().mean(),  # all pairs, on purpose
        lambda x: (x[:, None] - x[None]).square().mean(),
        lambda x: x.mean(),
        lambda x: torch.tensor(1.0),
        lambda x: x.sum().detach(),
    ],
)
def test_losses_that_are_as_they_should_be(scores, loss):
    assert mistake_of(loss(scores)) is None


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: 2 * (x - y).abs().mean() - (x - x.t()).abs().mean(),  # the energy distance of two samples
        lambda x, y: (torch.ones(6, 6) / 36 * (x - y).square()).sum(),  # a plan of transport
        lambda x, y: (x @ y[None] - torch.ones(6, 6)).square().mean(),  # a matrix of rank 1, one factor known
        lambda x, y: F.mse_loss(x @ y[None], torch.ones(6, 6)),
        lambda x, y: F.mse_loss(x * y, torch.ones(6, 6)),
    ],
)
def test_each_beside_all_on_purpose(answers, loss):
    assert mistake_of(loss(answers, TARGETS)) is None


def test_targets_that_went_through_a_sigmoid_are_no_answers(scores):
    assert mistake_of(F.binary_cross_entropy_with_logits(torch.zeros(6, 5), scores.sigmoid())) is None


def test_the_layers_of_a_model_are_not_looked_at():
    """A softmax within it, before a log-softmax within it, is its own affair."""
    x = torch.randn(4, 8, requires_grad=True)
    inner = nn.Linear(8, 8)(x.softmax(1).log_softmax(1))
    assert mistake_of(F.mse_loss(inner, torch.zeros(4, 8))) is None
    deep = F.cross_entropy(x, LABELS[:4])
    for _ in range(100):
        deep = deep.tanh()
    assert mistake_of(deep) is None  # so far nobody looks


class Named(torch.autograd.Function):
    """One that keeps a `name` where autograd has a method of that name."""

    @staticmethod
    def forward(ctx, x):
        ctx.name = "named"
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def test_a_function_of_ones_own_may_keep_what_it_likes(scores):
    assert mistake_of(Named.apply(scores).mean()) is None
    assert mistake(F.cross_entropy(scores.softmax(1), LABELS) + Named.apply(scores).mean()) == "twice"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_have_no_shape_to_ask_for(layout):
    answers = torch.nested.nested_tensor([torch.ones(3, 2), torch.ones(1, 2)], layout=layout, requires_grad=True)
    assert mistake_of((answers - answers.detach()).to_padded_tensor(0.0).square().mean()) is None


def watched(criterion, *, before=True, every=10):
    torch.manual_seed(0)
    net = nn.Linear(3, 5)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    watch = Monitor(net, every=every)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FindingWarning)
        for _ in range(2):
            optimizer.zero_grad()
            with watch.step() as step:
                loss = criterion(net(torch.randn(6, 3)), LABELS)
                if before:
                    step.log(loss=loss)
                loss.backward()
                optimizer.step()
                if not before:
                    step.log(loss=loss)
        return watch.findings


@pytest.mark.parametrize("before", [True, False])
def test_it_is_told_at_the_first_look(before):
    (found,) = watched(lambda x, y: F.cross_entropy(x.softmax(1), y), before=before)
    assert (found.step, found.kind, found.names) == (0, "loss", ("loss",))
    assert "in the loss: loss (a softmax before LogSoftmax)" in found.text
    assert "Pass the raw scores (logits)" in found.text


def test_each_mistake_has_its_own_text():
    (found,) = watched(F.nll_loss)
    assert (found.kind, found.step) == ("loss", 0)
    assert "nll_loss needs log-probabilities" in found.text
    assert "what a linear layer returns" in found.text
    (found,) = watched(lambda x, y: ((x[:, :1] - y) ** 2).mean())
    assert (found.kind, found.step) == ("targets", 0)
    assert "6 answers and 6 targets are 6 x 6 numbers" in found.text


def test_a_loss_without_a_graph_tells_nothing():
    assert watched(F.cross_entropy) == ()


def test_blocks_of_one_step_are_looked_at_each():
    """Of an accumulation the second block may be the one whose loss is broken."""
    torch.manual_seed(0)
    net = nn.Linear(3, 5)
    optimizer, watch = torch.optim.SGD(net.parameters(), 0.1), Monitor(net, every=10)

    def block(i):
        with watch.step() as step:
            scores = net(torch.randn(6, 3))
            loss = F.cross_entropy(scores.softmax(1) if i == 1 else scores, LABELS)
            loss.backward()
            step.log(loss=loss)
            if i % 2:
                optimizer.step()
                optimizer.zero_grad()

    block(0)
    with pytest.warns(FindingWarning, match="is applied twice"):
        block(1)
