"""Each parameter is accounted for: each cause is told once, with names; and what trains all the same is left alone."""

import copy
import warnings

import pytest
import torch
from torch import nn

from torch_featviz.errors import FindingWarning
from torch_featviz.training import Monitor


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FindingWarning)
        yield


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.mid, self.head = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 5)
        self.detached = False

    def forward(self, x):
        x = torch.relu(self.body(x))
        x = torch.relu(self.mid(x.detach() if self.detached else x))
        return self.head(x)


BODY, MID, HEAD = (tuple(f"{name}.{own}" for own in ("weight", "bias")) for name in ("body", "mid", "head"))
ALL = (*BODY, *MID, *HEAD)


def fresh():
    torch.manual_seed(0)
    return Net()


def sgd(parameters, lr=0.05):
    return torch.optim.SGD(parameters, lr)


def batch(i):
    g = torch.Generator().manual_seed(i)
    x = torch.randn(32, 24, generator=g)
    return x, x[:, :5].argmax(1)


def backward(net, i):
    x, y = batch(i)
    nn.functional.cross_entropy(net(x), y).backward()


def train(net, moves, *, steps=12, every=1, amid=None, before=None, after=None, **options):
    """What was told; `amid` is called between backward and step, `before` and `after` a block."""
    watch = Monitor(net, every=every, **options)
    for i in range(steps):
        if before:
            before(i)
        with watch.step():
            moves.zero_grad()
            backward(net, i)
            if amid:
                amid(i)
            moves.step()
        if after:
            after(i)
    watch.close()
    return [(each.step, each.kind, each.names) for each in watch.findings], watch


def test_a_healthy_training():
    net = fresh()
    assert train(net, sgd(net.parameters()))[0] == []


def test_an_optimizer_of_another_copy():
    net = fresh()
    found, watch = train(net, sgd(copy.deepcopy(net).parameters()))
    assert found == [(0, "untrained", ALL)]
    assert "The optimizer that steps holds tensors of the same shapes as these" in watch.findings[0].text
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
    assert "Gradients came and were thrown away" in found.text


def test_gradients_that_are_never_cleared():
    net = fresh()
    optimizer = sgd(net.parameters(), 1e-3)
    watch = Monitor(net, every=1)
    for i in range(4):
        with watch.step():
            backward(net, i)
            optimizer.step()
    (found,) = watch.findings
    assert (found.step, found.kind, found.names) == (1, "gradients", ("gradient",))


def test_a_layer_that_never_runs_is_told_after_three_looks():
    net = fresh()
    net.unused = nn.Linear(3, 3)
    found, watch = train(net, sgd(net.parameters()))
    assert found == [(2, "untrained", ("unused.weight", "unused.bias"))]
    assert "No gradient comes to these parameters, and nothing else moves them" in watch.findings[0].text


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
        assert "The learning rate of these has been 0 from the beginning" in watch.findings[0].text
        assert watch.history[0].scalars["learning_rate/0"] == 0.0


def test_a_warm_up_may_begin_at_zero_and_a_schedule_end_there():
    net = fresh()
    optimizer = sgd(net.parameters(), 0.05)
    rates = [0.0, 0.1, 0.3, 0.6, *[1.0] * 6, 0.5, *[0.0] * 6]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rates[min(i, 16)])
    assert train(net, optimizer, steps=17, after=lambda i: schedule.step())[0] == []


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


def test_what_is_frozen_is_told_only_where_it_is_random():
    net = fresh()
    net.body.requires_grad_(False)
    found, watch = train(net, sgd([*net.mid.parameters(), *net.head.parameters()]))
    assert found == [(0, "untrained", ("body.weight",))]
    assert "still as they were drawn at random" in watch.findings[0].text
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
