"""What trains all the same is left alone: by hand, as a teacher, tied, thawed late, by several steps, sparse."""

import copy
import warnings

import pytest
import torch
from torch import nn

from tests.training.accounts import BODY, backward, batch, fresh, sgd, train
from torch_featviz.errors import FindingWarning
from torch_featviz.training import Monitor


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FindingWarning)
        yield


def test_sgd_written_by_hand_is_training():
    net = fresh()
    watch = Monitor(net, every=1)
    for i in range(8):
        with watch.step():
            for p in net.parameters():
                p.grad = None
            backward(net, i)
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.05 * p.grad
    watch.close()
    assert watch.findings == ()
    assert watch.history.steps == list(range(8))


def test_one_part_may_be_moved_by_hand_and_another_not_at_all():
    net = fresh()

    def by_hand(i):
        with torch.no_grad():
            net.head.weight -= 0.05 * net.head.weight.grad
            net.head.bias -= 0.05 * net.head.bias.grad
        net.head.zero_grad()

    found, _ = train(net, sgd(net.mid.parameters()), amid=by_hand)
    assert found == [(0, "untrained", BODY)]


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_a_teacher_that_follows_its_pupil(place):
    pupil = fresh()
    net = nn.ModuleDict({"pupil": pupil, "teacher": copy.deepcopy(pupil)})
    optimizer = sgd(pupil.parameters())
    watch = Monitor(net, every=1)

    def follow():
        with torch.no_grad():
            for mine, theirs in zip(net["teacher"].parameters(), pupil.parameters(), strict=True):
                mine.lerp_(theirs, 0.05)

    for i in range(8):
        with watch.step():
            optimizer.zero_grad()
            x, _ = batch(i)
            loss = (pupil(x) - net["teacher"](x + 0.1).detach()).square().mean()
            backward(pupil, i)
            assert loss.isfinite()
            optimizer.step()
            if place == "inside":
                follow()
        if place == "outside":
            follow()
    watch.close()
    assert [(each.kind, each.names) for each in watch.findings] == []


def test_tied_weights_are_one():
    net = fresh()
    net.mid.weight = net.body.weight
    found, watch = train(net, sgd(net.parameters()))
    assert found == []
    assert watch.history[0].parameters["mid.weight"] == watch.history[0].parameters["body.weight"]
    net = fresh()
    net.mid.weight = net.body.weight
    found, _ = train(net, sgd([*net.mid.parameters(), *net.head.parameters()]))
    assert found == [(0, "untrained", ("body.bias",))]
    net = fresh()
    net.mid.weight = net.body.weight
    found, _ = train(net, sgd(net.head.parameters()))
    assert found == [(0, "untrained", (*BODY, "mid.bias"))]  # by its first name, once


def test_one_optimizer_is_given_and_others_live():
    net = fresh()
    alive = sgd(net.body.parameters())  # which nobody steps
    optimizer = sgd([*net.mid.parameters(), *net.head.parameters()])
    assert train(net, optimizer)[0] == []  # it may step in some other loop
    net = fresh()
    alive = sgd(net.body.parameters())
    optimizer = sgd([*net.mid.parameters(), *net.head.parameters()])
    found, _ = train(net, optimizer, optimizer=optimizer)
    assert found == [(0, "untrained", BODY)]
    assert alive.param_groups


def test_progressive_unfreezing():
    net = fresh()
    with torch.no_grad():
        for p in net.body.parameters():
            p.mul_(1 + 0.3 * torch.randn_like(p))  # as a training leaves it
    net.body.requires_grad_(False)
    optimizer = sgd([p for p in net.parameters() if p.requires_grad])

    def thaw(i):
        if i == 5:
            net.body.requires_grad_(True)
            optimizer.add_param_group({"params": net.body.parameters()})

    found, watch = train(net, optimizer, before=thaw)
    assert found == []
    moved = [sample.parameters["body.weight"].grad_norm is not None for sample in watch.history]
    assert moved == [False] * 5 + [True] * 7
    net = fresh()
    net.body.requires_grad_(False)
    net.body.weight.data.mul_(1 + 0.3 * torch.randn_like(net.body.weight))
    optimizer = sgd([p for p in net.parameters() if p.requires_grad])
    found, _ = train(net, optimizer, before=lambda i: i == 5 and net.body.requires_grad_(True))  # and forgotten
    assert found == [(5, "untrained", BODY)]


def test_a_gradient_in_any_step_of_a_block_is_one():
    """As of an optimizer that steps once for each of several losses."""
    net = fresh()
    optimizer, watch = sgd(net.parameters()), Monitor(net, every=1)
    for i in range(5):
        with watch.step():
            optimizer.zero_grad()
            backward(net, i)
            optimizer.step()
            optimizer.zero_grad()
            x, y = batch(i)
            nn.functional.cross_entropy(net.head(x), y).backward()  # the head alone
            optimizer.step()
    watch.close()
    assert watch.findings == ()
    assert watch.history[0].scalars["learning_rate"] == 0.05


def test_sparse_gradients_are_gradients():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(40, 8, sparse=True), nn.Flatten(), nn.Linear(24, 4))
    dense, sparse = sgd(net[2].parameters()), torch.optim.SparseAdam(list(net[0].parameters()), 1e-2)
    watch = Monitor(net, every=1)
    for _ in range(6):
        with watch.step():
            words = torch.randint(40, (16, 3))
            nn.functional.cross_entropy(net(words), words[:, 0] % 4).backward()
            for each in (dense, sparse):
                each.step()
                each.zero_grad()
    assert watch.findings == ()
    assert watch.history[0].parameters["0.weight"].grad_norm is None
    assert watch.history[0].parameters["2.weight"].grad_norm > 0
