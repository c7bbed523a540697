"""Every step has a record: the norm of its gradients and its loss, and the first that is broken is named."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from torch_featviz import bench
from torch_featviz.errors import FindingWarning
from torch_featviz.training import Monitor, Sample
from torch_featviz.training.account import Account
from torch_featviz.training.findings import Findings
from torch_featviz.training.records import PendingRecords, StepRecord


def fresh(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)


def told(*, every=5, steps=11, break_loss=(), break_gradient=(), log=True, **options):
    """Findings of a training of which some steps are broken; its weights are put back to what they were."""
    net = fresh()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    watch = Monitor(net, every=every, **options)
    for i in range(steps):
        before = [p.detach().clone() for p in net.parameters()]
        with warnings.catch_warnings(), watch.step() as step:
            warnings.simplefilter("ignore", FindingWarning)
            loss = net(torch.randn(4, 3)).square().mean()
            loss.backward()
            if i in break_gradient:
                net[0].weight.grad[0, 0] = torch.nan
            if log:
                step.log(loss=loss * (torch.inf if i in break_loss else 1))
            optimizer.step()
            optimizer.zero_grad()
        if i in break_gradient:
            with torch.no_grad():
                for p, q in zip(net.parameters(), before, strict=True):
                    p.copy_(q)
    watch.close()
    return watch.findings


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FindingWarning)
        yield


def test_the_first_broken_step_between_two_looks_is_named():
    (found,) = told(break_gradient={7, 8})
    assert (found.step, found.kind, found.names) == (7, "nonfinite", ("gradient",))
    assert "The gradient has NaN or infinity at step 7, although the loss is finite" in found.text
    assert "(at step 6: loss " in found.text
    assert "At step 10 all values are finite again." in found.text
    (found,) = told(break_gradient={7}, log=False)
    assert (
        "The gradient has NaN or infinity at step 7; this is the first such step (at step 6: gradient norm"
        in found.text
    )


def test_of_loss_and_gradient_the_loss_comes_first():
    (found,) = told(break_loss={7}, break_gradient={7, 8})
    assert (found.step, found.names) == (7, ("loss",))
    assert "The loss is inf at step 7; this is the first such step (at step 6: loss " in found.text
    (found,) = told(break_loss={8}, break_gradient={7})
    assert (found.step, found.names) == (7, ("gradient",))


def test_weights_that_are_broken_since_are_named():
    net = fresh()
    optimizer, watch = torch.optim.SGD(net.parameters(), 0.01), Monitor(net, every=4)
    for i in range(5):
        with watch.step():
            (net(torch.randn(4, 3)).square().mean() * (math.nan if i == 2 else 1)).backward()
            optimizer.step()
            optimizer.zero_grad()
    (found,) = watch.findings
    assert (found.step, found.names) == (2, ("gradient",))
    assert "These weights now contain NaN or infinity: 0.weight, 0.bias, 2.weight, 2.bias." in found.text
    assert found.text.endswith("Check the data of step 2.")


def test_a_gradient_that_had_grown_is_not_the_fault_of_its_batch():
    for last, advice in (
        (1100.0, "Lower the learning rate, or clip gradients."),
        (900.0, "Check the data of step 8."),
    ):
        records = (
            StepRecord(6, 20.0, {}),
            StepRecord(7, last, {}),
            StepRecord(8, math.inf, {}),
            StepRecord(9, 1.0, {}),
        )
        (found,) = Findings().look(Sample(9, {}, {}), Account(records=records))
        assert (found.step, found.names) == (8, ("gradient",))
        assert found.text.endswith(advice)


def test_switched_off_nothing_is_seen_of_gradients_between_looks():
    assert told(break_gradient={7}, check_finite=False) == ()
    (found,) = told(break_loss={7}, check_finite=False)  # what is logged is known anyway
    assert found.step == 7
    net = fresh()
    optimizer, watch, accounts = torch.optim.SGD(net.parameters(), 0.01), Monitor(net, every=3, check_finite=False), []
    look = watch._log.findings.look
    watch._log.findings.look = lambda sample, account: accounts.append(account) or look(sample, account)
    for _ in range(4):
        with watch.step():
            net(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    gradients = [record.gradient is None for account in accounts for record in account.records]
    assert gradients == [False, True, True, False]  # a look has it anyway


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("every", [1, 3])
def test_the_norm_of_all_gradients_is_numpys(dtype, every):
    net, outside = fresh(dtype), nn.Linear(2, 1).to(dtype)  # of another model, moved by the same optimizer
    optimizer = torch.optim.SGD([*net.parameters(), *outside.parameters()], 0.01)
    watch, accounts, expected = Monitor(net, every=every), [], []
    look = watch._log.findings.look
    watch._log.findings.look = lambda sample, account: accounts.append(account) or look(sample, account)
    for _ in range(7):
        with watch.step():
            outside(net(torch.randn(4, 3, dtype=dtype))).square().mean().backward()
            grads = [p.grad.double().numpy().ravel() for p in (*net.parameters(), *outside.parameters())]
            expected.append(np.linalg.norm(np.concatenate(grads)))
            optimizer.step()
            optimizer.zero_grad()
    records = [record for account in accounts for record in account.records]
    np.testing.assert_allclose([record.gradient for record in records], expected, rtol=1e-6)
    np.testing.assert_allclose(watch.history.values("gradient_norm"), expected[::every], rtol=1e-6)


def test_a_gradient_of_a_fused_optimizer_is_the_scalers_to_judge():
    net = fresh()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2, fused=True)
    scaler, watch = torch.amp.GradScaler("cpu", init_scale=2.0**16), Monitor(net, every=2)
    for i in range(5):
        with watch.step():
            optimizer.zero_grad()
            scaler.scale(net(torch.randn(4, 3)).square().mean() * (1e37 if i == 1 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert watch.findings == ()
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="autograd asks for a device that is there")
@pytest.mark.parametrize(("options", "most"), [({}, 1), ({"check_finite": False}, 0), ({"noise": True}, 1)], ids=str)
def test_between_looks_nothing_is_waited_for(options, most):
    """On tensors that only say they are on a GPU; the backward is left out."""
    x = torch.zeros(4, 3)
    with bench._on_fake_gpu(fresh(), (x,)) as (net, (x,), counted):
        optimizer, watch = torch.optim.SGD(net.parameters(), 0.01, foreach=True), Monitor(net, every=100, **options)

        def step():
            loss = net(x).square().mean()
            for parameter in net.parameters():
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()
            optimizer.zero_grad()
            return loss

        def watched():
            with watch.step() as seen:
                seen.log(loss=step(), accuracy=0.5)

        counted(step)
        bare = counted(step)
        for _ in range(2):
            counted(watched)
        inside = counted(watched)
    assert inside.waits == bare.waits
    assert inside.launches - bare.launches <= most


@pytest.mark.parametrize(
    ("gradient", "loss", "broken"),
    [
        (1.0, 1.0, False),
        (None, None, False),
        (math.inf, 1.0, True),
        (1.0, math.nan, True),
        (None, -math.inf, True),
        (math.nan, None, True),
    ],
)
def test_a_broken_record(gradient, loss, broken):
    record = StepRecord(3, gradient, {"accuracy": math.nan} | ({} if loss is None else {"loss": loss}))
    assert record.broken is broken


def test_records_are_read_in_their_order():
    tensor = torch.tensor
    steps = [
        (4, {1: [tensor(9.0)], 2: [tensor(12.0), tensor(4.0)]}, {"loss": [tensor(1.0), 2.0, tensor(6.0)], "a": [5.0]}),
        (5, {}, {"b": [tensor(8.0)]}),
        (6, {1: [tensor(49.0)]}, {}),
    ]
    records = PendingRecords(steps)
    read = records.read(iter([float(each) for each in records.tensors]))
    assert read == [
        StepRecord(4, 5.0, {"loss": 3.0, "a": 5.0}),
        StepRecord(5, None, {"b": 8.0}),
        StepRecord(6, 7.0, {}),
    ]
