import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torch_featviz.errors import FeatvizError, OptionError, ShapeError
from torch_featviz.zoo import evaluate, fit, recipe, train_xo
from torch_featviz.zoo.xo import XONet, xo


@pytest.fixture
def toy():
    inputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), 30)


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 2))
    model[1].eval()
    return model


def test_fit_learns_and_puts_flags_back(toy, capsys):
    model = net()
    history = fit(model, toy, toy, epochs=8, lr=0.02)
    assert history.valid_accuracy[-1] > 0.95
    assert history.train_loss[-1] < history.train_loss[0]
    assert all(len(numbers) == 8 for numbers in vars(history).values())
    assert [m.training for m in model] == [True, False, True, True]
    assert all(p.grad is None for p in model.parameters())
    out, bar = capsys.readouterr()
    assert not out
    assert "epoch 8/8" in bar
    assert "loss=" in bar
    assert "accuracy=" in bar


def test_fit_without_validation_or_bar(toy, capsys):
    history = fit(net(), toy, epochs=1, progress=False)
    assert math.isnan(history.valid_loss[0])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("epochs", [1, 2, 5, 6])
def test_fit_of_a_single_batch(epochs):
    inputs = torch.randn(8, 4)
    loader = DataLoader(TensorDataset(inputs, torch.zeros(8, dtype=torch.long)), 8)
    assert len(fit(net(), loader, epochs=epochs, progress=False).seconds) == epochs


def test_fit_with_an_optimizer_and_augmentation(toy):
    model, seen = net(), []
    before = model[0].weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    fit(model, toy, epochs=1, optimizer=optimizer, augment=lambda x: seen.append(len(x)) or x, progress=False)
    assert seen == [30] * 6 + [20]
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not torch.equal(model[0].weight, before)


def test_a_loss_that_is_no_number(toy):
    model = net()
    with torch.no_grad():
        model[3].bias[0] = float("nan")
    with pytest.raises(FeatvizError, match="the loss became nan; lower lr"):
        fit(model, toy, epochs=1, progress=False)
    assert not model[1].training


def test_fit_refuses(toy):
    with pytest.raises(OptionError, match=r"epochs must be at least 1 and lr above 0, got 0 and 0\.001"):
        fit(net(), toy, epochs=0)
    with pytest.raises(ShapeError, match="train_loader must yield at least one batch"):
        fit(net(), DataLoader(TensorDataset(torch.zeros(0, 4))))
    with pytest.raises(ShapeError, match="loader must yield at least one batch"):
        evaluate(net(), DataLoader(TensorDataset(torch.zeros(0, 4))))
    with pytest.raises(ShapeError, match=r"must give 'b n' logits, got shape \(200, 4, 1\)"):
        evaluate(nn.Unflatten(1, (4, 1)), toy)


def test_evaluate_counts_by_truth_and_answer():
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]])
    truth = torch.tensor([0, 0, 1, 2])
    result = evaluate(nn.Identity(), DataLoader(TensorDataset(logits, truth), 3))
    assert result.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert result.confusion.dtype == torch.int64
    assert result.accuracy == 0.75
    assert torch.equal(result.logits, logits)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, truth).item())


@pytest.mark.parametrize("model", [xo(), XONet((1, 4, 3), (6,), pool=False, size=12)])
def test_pooling_first_is_the_same_function(model):
    images = torch.rand(2, 1, *((116, 116) if model.features[0].out_channels == 9 else (12, 12)))
    assert torch.equal(recipe.pool_first(model)(images), model(images))


def test_train_xo_repeats_itself(monkeypatch):
    monkeypatch.setattr(
        "torch_featviz.zoo.data.SPLITS", {"train": range(40), "valid": range(40, 60), "test": range(60, 80)}
    )
    state = torch.get_rng_state()
    first, history, result = train_xo(2, epochs=1, progress=False)
    again = train_xo(2, epochs=1, progress=False)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not first.training
    assert int(result.confusion.sum()) == 20
    assert len(history.seconds) == 1
    with pytest.raises(OptionError, match="epochs must be at least 1, got 0"):
        train_xo(epochs=0)


def test_each_step_is_done_in_what_is_given():
    steps = []

    @contextmanager
    def around():
        before = model[1].weight.clone()
        yield
        steps.append((torch.is_grad_enabled(), bool((model[1].weight != before).any())))

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    data = DataLoader([(torch.randn(1, 2, 2), i % 2) for i in range(6)], 2)
    fit(model, data, data, epochs=2, around=around, progress=False)
    assert steps == [(True, True)] * 6
