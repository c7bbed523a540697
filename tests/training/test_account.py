"""Each parameter is accounted for: each cause is told once, with names; and what trains all the same is left alone."""

import copy
import warnings

import pytest
import torch
from torch import nn

from tests.training.accounts import ALL, BODY, HEAD, MID, backward, batch, fresh, sgd, train
from torch_featviz.errors import FindingWarning
from torch_featviz.training import Monitor


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FindingWarning)
        yield


def test_a_healthy_training():
    net = fresh()
    assert train(net, sgd(net.parameters()))[0] == []


def test_an_optimizer_of_another_copy():
    net = fresh()
    found, watch = train(net, sgd(copy.deepcopy(net).parameters()))
    assert found == [(0, "untrained", ALL)]
    assert "The optimizer updates other tensors of the same shapes" in watch.findings[0].text
    assert "(SGD)" in watch.findings[0].text


def test_parameters_in_no_optimizer():
    net = fresh()
    found, watch = train(net, sgd(net.head.parameters()))
    assert found == [(0, "untrained", (*BODY, *MID))]
    assert "No optimizer holds these trainable parameters" in watch.findings[0].text


def test_a_body_that_is_detached():
    net = fresh()
    net.detached = True
    found, watch = train(net, sgd(net.parameters()))
    assert found == [(0, "untrained", BODY)]
    assert "Look for detach(), no_grad() or .data" in watch.findings[0].text


def test_gradients_that_are_cleared_before_the_step():
    for to_none in (True, False):
        net = fresh()
        optimizer = sgd(net.parameters())
        found, watch = train(net, optimizer, amid=lambda i: optimizer.zero_grad(set_to_none=to_none))  # noqa: B023
        assert found == [(0, "untrained", ALL)]
        assert "backward()" in watch.findings[0].text


def test_an_optimizer_that_never_steps():
    net = fresh()
    optimizer = sgd(net.parameters())
    watch = Monitor(net, every=1)
    for i in range(4):
        with watch.step():
            optimizer.zero_grad()
            backward(net, i)
    watch.close()
    (found,) = watch.findings
    assert (found.kind, found.names) == ("untrained", ALL)
    assert "Gradients were computed and discarded" in found.text


def test_gradients_that_are_never_cleared():
    net = fresh()
    optimizer = sgd(net.parameters(), 1e-3)
    watch = Monitor(net, every=1)
    for _ in range(6):
        with watch.step():
            backward(net, 0)
            optimizer.step()
    (found,) = watch.findings
    assert (found.step, found.kind, found.names) == (3, "gradients", ("gradient",))


def test_gradients_that_are_cleared_without_a_trace():
    net = fresh()
    optimizer, watch = sgd(net.parameters(), 1e-3), Monitor(net, every=1)
    for i in range(6):
        with watch.step():
            for each in net.parameters():
                if each.grad is not None:
                    each.grad.data.zero_()
            backward(net, i)
            optimizer.step()
    assert not watch.findings


def test_a_layer_that_never_runs_is_told_after_three_looks():
    net = fresh()
    net.unused = nn.Linear(3, 3)
    found, watch = train(net, sgd(net.parameters()))
    assert found == [(2, "untrained", ("unused.weight", "unused.bias"))]
    assert "No gradient reaches these parameters, so they never change" in watch.findings[0].text


@pytest.mark.parametrize("every", [1, 3])
def test_one_group_without_a_learning_rate(every):
    for rate in (0.0, torch.tensor(0.0)):
        net = fresh()
        groups = [
            {"params": net.body.parameters(), "lr": rate},
            {"params": [*net.mid.parameters(), *net.head.parameters()]},
        ]
        optimizer = torch.optim.Adam(
            groups, 1e-3 if rate == 0 and isinstance(rate, float) else torch.tensor(1e-3), foreach=False
        )
        found, watch = train(net, optimizer, every=every)
        assert found == [(every, "untrained", BODY)]
        assert "The learning rate of these parameters has been 0 since the first step" in watch.findings[0].text
        assert watch.history[0].scalars["learning_rate/0"] == 0.0


def test_a_warm_up_may_begin_at_zero_and_a_schedule_end_there():
    net = fresh()
    optimizer = sgd(net.parameters(), 0.05)
    rates = [0.0, 0.1, 0.3, 0.6, *[1.0] * 6, 0.5, *[0.0] * 6]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rates[min(i, 16)])
    assert train(net, optimizer, steps=17, after=lambda i: schedule.step())[0] == []


def test_what_is_frozen_is_told_only_where_it_is_random():
    net = fresh()
    net.body.requires_grad_(False)
    found, watch = train(net, sgd([*net.mid.parameters(), *net.head.parameters()]))
    assert found == [(0, "untrained", ("body.weight",))]
    assert "are frozen (requires_grad=False) with random weights" in watch.findings[0].text
    net = fresh()
    train(net, sgd(net.parameters(), 0.5), steps=40)
    net.body.requires_grad_(False)
    assert train(net, sgd([*net.mid.parameters(), *net.head.parameters()]))[0] == []


def test_rows_that_are_all_alike():
    net = fresh()
    nn.init.constant_(net.mid.weight, 0.05)
    nn.init.constant_(net.mid.bias, 0.1)
    nn.init.constant_(net.head.weight, 0.05)
    found, _ = train(net, sgd(net.parameters()))
    assert (0, "symmetric", ("mid.weight",)) in found
    net = fresh()
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    assert train(net, sgd(net.parameters()))[0] == []


def test_rows_that_are_alike_are_told_also_after_a_block_without_a_step():
    net = fresh()
    nn.init.constant_(net.mid.weight, 0.05)
    nn.init.constant_(net.mid.bias, 0.1)
    nn.init.constant_(net.head.weight, 0.05)
    optimizer, watch = sgd(net.parameters()), Monitor(net, every=1)
    with watch.step():
        net(batch(0)[0])  # to see whether it runs
    with watch.step():
        backward(net, 1)
        optimizer.step()
    assert (1, "symmetric", ("mid.weight",)) in [(each.step, each.kind, each.names) for each in watch.findings]


def test_of_several_causes_each_is_told_once():
    net = fresh()
    net.body.requires_grad_(False)
    net.unused = nn.Linear(3, 3)
    optimizer = sgd([*net.mid.parameters(), *net.unused.parameters()])
    found, _ = train(net, optimizer, steps=20)
    names = [name for _, _, several in found for name in several]
    assert sorted(names) == sorted(set(names))
    assert set(names) == {"body.weight", *HEAD, "unused.weight", "unused.bias"}


def test_ignored_kinds_are_not_told():
    net = fresh()
    assert train(net, sgd(net.head.parameters()), ignore={"untrained": ["body.*", "mid.weight"]})[0] == [
        (0, "untrained", ("mid.bias",))
    ]


class TwoParts(nn.Module):
    """Each with a norm; the second also drops."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Sequential(nn.Linear(24, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 5))

    def forward(self, x):
        return self.two(self.one(x))


def switch(net, how, *, parameters=None, steps=30):
    """`(step, names)` of what is told of modes, where `how` is done to the net after the tenth of the steps."""
    watch, optimizer = Monitor(net, every=5), sgd(parameters or net.parameters())
    for i in range(steps):
        if i == 10:
            how(net)
        with watch.step():
            backward(net, i)
            optimizer.step()
            optimizer.zero_grad()
    return [(each.step, each.names) for each in watch.findings if each.kind == "mode"]


def test_a_part_that_stays_in_evaluation_is_told():
    assert switch(TwoParts(), lambda net: net.one.eval()) == [(15, ("one.1",))]
    assert switch(TwoParts(), lambda net: net.two.eval()) == [(15, ("two.1", "two.2"))]
    assert switch(TwoParts(), lambda net: net.eval()) == [(15, ("one.1", "two.1", "two.2"))]


def test_modes_that_are_changed_on_purpose():
    def norms(net):
        net.one[1].eval()
        net.two[1].eval()

    def freeze(net):
        net.one.eval().requires_grad_(False)

    assert switch(TwoParts(), norms) == []  # norms alone, as at the end of a training
    assert switch(TwoParts(), freeze) == []  # a part that learns no more
    assert switch(TwoParts(), lambda net: net.one.eval() and None, steps=15) == []  # once may be a moment between
    net = TwoParts()
    assert switch(net, lambda net: net.one.eval(), parameters=list(net.two.parameters())) == []  # nobody moves it


@pytest.mark.parametrize(("trained", "expected"), [(0, 4), (1, 0)])
def test_a_frozen_body_is_untrained_where_more_than_three_quarters_are_as_drawn(trained, expected):
    torch.manual_seed(0)
    body = [nn.Linear(24, 24) for _ in range(4)]
    with torch.no_grad():
        for layer in body[:trained]:
            layer.weight *= 1.3
            layer.weight += 0.3 * torch.randn(24, 24) ** 3
    small = nn.Linear(24, 5).requires_grad_(False)  # of so few numbers nothing is said
    net = nn.Sequential(*[layer.requires_grad_(False) for layer in body], small, nn.Linear(5, 5))
    found, watch = train(net, sgd(net[-1].parameters()), steps=1)
    told = [name for _, kind, names in found if kind == "untrained" for name in names]
    assert len(told) == expected
    assert not expected or "frozen (requires_grad=False) with random weights" in watch.findings[0].text
