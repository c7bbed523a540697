"""What is seen in the blocks of a step: training forwards only, inputs as NumPy counts them, layers as they run."""

import numpy as np
import pytest
import torch
from torch import nn

from torch_featviz.training import Monitor
from torch_featviz.training.sampling import Sampling
from torch_featviz.training.updates import Gradients
from torch_featviz.training.watched import Watched


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.norm = nn.Linear(4, 2), nn.BatchNorm1d(4)
        self.late, self.body = nn.Linear(4, 4), nn.Linear(3, 4)

    def forward(self, x):
        return self.head(torch.relu(self.late(self.norm(self.body(x)))))


def fresh():
    torch.manual_seed(0)
    return HeadFirst()


def counts(watch, layer="head"):
    return sum(watch.history[-1].layers[layer].histogram.counts)


def test_layers_stand_in_the_order_in_which_they_run():
    net = fresh()
    watch = Monitor(net, every=1)
    with watch.step():
        net(torch.randn(5, 3))
    assert list(watch.history[0].layers) == ["body", "norm", "late", "head"]
    with watch.step():
        net.body(torch.randn(5, 3))
        net.late(torch.randn(5, 4))
        net.body(torch.randn(5, 3))
    assert list(watch.history[1].layers) == ["body", "late"]


@pytest.mark.parametrize("compiled", [False, True])
def test_evaluation_inside_a_block_is_passed_over(compiled):
    figures = []
    for evaluates in (False, True):
        net = fresh()
        model = torch.compile(net, backend="aot_eager") if compiled else net
        watch, optimizer = Monitor(model, every=1), torch.optim.SGD(net.parameters(), 0.1)
        for i in range(3):
            torch.manual_seed(i)
            x = torch.randn(6, 3)
            with watch.step():
                model(x).square().mean().backward()
                if evaluates:
                    model.eval()
                    with torch.no_grad():
                        model(100 * torch.ones(9, 3))
                    model.train()
                optimizer.step()
                optimizer.zero_grad()
                if evaluates:
                    model.eval()
                    with torch.no_grad():
                        model(torch.full((2, 3), torch.nan))
                    model.train()
        figures.append(list(watch.history))
    assert figures[0] == figures[1]
    assert sum(figures[1][0].layers["head"].histogram.counts) == 12
    assert figures[1][0].inputs["inputs"].max < 10


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_that_begins_in_evaluation_mode_is_seen(compiled):
    net = fresh().eval()
    for p in net.norm.buffers():
        p.add_(1)  # as if it had gathered statistics
    model = torch.compile(net, backend="aot_eager") if compiled else net
    watch = Monitor(model, every=1)
    with watch.step():
        model(torch.randn(6, 3)).sum().backward()
    assert counts(watch) == 12
    assert "inputs" in watch.history[0].inputs


def test_evaluation_between_the_blocks_of_a_step_is_not_of_it():
    net = fresh()
    watch, optimizer = Monitor(net, every=1), torch.optim.SGD(net.parameters(), 0.1)
    for i in range(2):
        with watch.step():
            net(torch.randn(6, 3)).sum().backward()
            if i:
                optimizer.step()
        net(torch.randn(50, 3))
        net.eval()(torch.randn(50, 3))
        net.train()
    assert counts(watch) == 24


class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.fc = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, x, tokens=None, y=None, *, mask=None, scale=None, more=None):
        x = x if tokens is None else x + self.words(tokens)
        return self.fc(x if y is None else x + y["y"][0] if isinstance(y, dict) else x + y)


def numpys(tensor):
    values = tensor.detach().double().numpy()
    finite = values[np.isfinite(values)]
    return (
        (finite.mean(), finite.std(), finite.min(), finite.max(), (values == 0).mean()),
        (np.isnan(values).sum(), np.isinf(values).sum(), len(finite.ravel())),
    )


def same(figures, tensor):
    floats, wholes = numpys(tensor)
    found = (figures.mean, figures.std, figures.min, figures.max, figures.zero_share)
    np.testing.assert_allclose(found, floats, rtol=1e-5, atol=1e-6)
    assert (figures.nan, figures.inf, sum(figures.histogram.counts)) == wholes


def seen(*args, **kwargs):
    net = Many()
    watch = Monitor(net, every=1)
    with watch.step():
        net(*args, **kwargs)
    return watch.history[0].inputs


def test_figures_of_inputs_are_numpys():
    g = torch.Generator().manual_seed(0)
    x, y, mask, scale = (torch.randn(6, 4, generator=g) * factor + factor for factor in (1, 5, 0.1, 300))
    x[0, 0] = 0
    words = torch.randint(10, (6,), generator=g)
    inputs = seen(x)
    assert list(inputs) == ["inputs"]
    same(inputs["inputs"], x)
    inputs = seen(x, words, y, mask=mask, scale=scale)
    assert list(inputs) == ["inputs", "inputs/2", "inputs/mask", "inputs/scale"]  # integers are left out
    for name, tensor in zip(inputs, (x, y, mask, scale), strict=True):
        same(inputs[name], tensor)
    inputs = seen(x=x, mask=mask)
    assert list(inputs) == ["inputs", "inputs/mask"]
    same(inputs["inputs"], x)
    same(inputs["inputs/mask"], mask)
    assert list(seen(x, y=y, mask=mask, scale=scale, more=x)) == ["inputs", "inputs/y", "inputs/mask", "inputs/scale"]
    assert list(seen(x, y={"y": [y]})) == ["inputs", "inputs/y"]
    assert list(seen(x, y=torch.tensor(2.0))) == ["inputs"]  # one number is a setting
    assert list(seen(x.double().float(), mask=torch.ones(6, dtype=torch.bool))) == ["inputs"]


def test_inputs_of_all_forwards_of_a_step_are_together():
    net = fresh()
    watch, given = Monitor(net, every=1), [torch.randn(n, 3) for n in (4, 7)]
    with watch.step():
        for x in given:
            net(x)
    same(watch.history[0].inputs["inputs"], torch.cat(given))


@pytest.mark.filterwarnings("ignore::torch_featviz.errors.FindingWarning")
@pytest.mark.parametrize("compiled", [False, True])
def test_broken_inputs_are_counted(compiled):
    net, x = fresh(), torch.randn(5, 3)
    x[0], x[1, 1], x[2, 2] = torch.nan, torch.inf, -torch.inf
    model = torch.compile(net, backend="aot_eager") if compiled else net
    watch = Monitor(model, every=1)
    with watch.step():
        model(x)
    same(watch.history[0].inputs["inputs"], x)
    assert (watch.history[0].inputs["inputs"].nan, watch.history[0].inputs["inputs"].inf) == (3, 2)


class Loses(nn.Module):
    """Returns its loss."""

    def __init__(self, form):
        super().__init__()
        self.fc, self.form = nn.Linear(3, 2), form

    def forward(self, x):
        loss, answer = self.fc(x).square().mean(), self.fc(x)
        return {"tuple": (loss, answer), "dict": {"logits": answer, "loss": loss}, "loss": loss, "none": answer}[
            self.form
        ]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("form", ["tuple", "dict", "loss", "none"])
def test_the_loss_that_a_model_returns(form, compiled):
    torch.manual_seed(0)
    net = Loses(form)
    model = torch.compile(net, backend="aot_eager") if compiled else net
    watch, optimizer = Monitor(model, every=1), torch.optim.SGD(net.parameters(), 0.1)
    losses = []
    for i in range(4):
        with watch.step() as step:
            for x in (torch.randn(6, 3), torch.randn(6, 3)):
                loss = net.fc(x.clone()).square().mean()  # ours
                losses.append(loss.item())
                model(x)
            model.eval()
            model(100 * torch.ones(4, 3))  # passed over
            model.train()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if i == 3:
                step.log(loss=7.0)
    if form == "none":
        assert watch.history.values("loss")[3] == 7.0
        assert "loss" not in watch.history[0].scalars
        return
    expected = [*(sum(losses[i : i + 2]) / 2 for i in (0, 2, 4)), 7.0]
    np.testing.assert_allclose(watch.history.values("loss"), expected, rtol=1e-6)


def test_tokens_have_no_figures():
    net = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    watch = Monitor(net, every=1)
    with watch.step():
        net(torch.randint(10, (3, 5)))
    assert watch.history[0].inputs == {}
    assert list(watch.history[0].layers) == ["0", "1"]


def test_a_sampling_without_any_block_has_no_figures():
    net = fresh()
    sampling = Sampling(3, Watched(net, None, 16), Gradients(16))
    assert sampling.figures(None) == ({}, {}, {})
    sampling.end()
    with sampling.block():
        net(torch.randn(2, 3))
    with sampling.block():
        net(torch.randn(2, 3))
    layers, inputs, left_out = sampling.figures(None)
    assert (list(layers), list(inputs), left_out) == (["body", "norm", "late", "head"], ["inputs"], {})
    sampling.end()
    sampling.end()
    assert "forward" not in vars(net)
