from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torch_featviz.errors import DtypeError, FeatvizError, OptionError, ShapeError
from torch_featviz.views import confusion, curves
from torch_featviz.zoo import TrainingCurves, evaluate, fit, recipe, train_xo
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
    assert (history.valid_loss, history.valid_accuracy) == ((), ())
    assert len(history.train_loss) == len(history.seconds) == 1
    (panel,) = curves({key: line for key, line in vars(history).items() if "loss" in key}).figure().axes
    assert [words.get_text().split()[0] for words in panel.texts] == ["train"]
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
    for options, match in (
        ({"log": True}, "log must be a function that takes a line, such as print, got True"),
        ({"every": 10}, r"every must be at least 1, and needs log=, such as print; got 10 and log=None"),
        ({"every": 0, "log": print}, "every must be at least 1"),
        (
            {"criterion": nn.NLLLoss(torch.ones(3))},
            r"criterion is called with scores \(30, 2\) and class numbers \(30,\)",
        ),
    ):
        with pytest.raises(OptionError, match=match):
            fit(net(), toy, epochs=1, progress=False, **options)
    with pytest.raises(ShapeError, match=r"criterion must return one number, got shape \(30,\); take the mean"):
        fit(net(), toy, epochs=1, criterion=nn.CrossEntropyLoss(reduction="none"), progress=False)
    with pytest.raises(ShapeError, match="criterion must return one number, got float"):
        evaluate(net(), toy, criterion=lambda scores, truth: 0.5)
    with pytest.raises(ShapeError, match="train_loader must yield at least one batch"):
        fit(net(), DataLoader(TensorDataset(torch.zeros(0, 4))))
    with pytest.raises(ShapeError, match="loader must yield at least one batch"):
        evaluate(net(), DataLoader(TensorDataset(torch.zeros(0, 4))))
    with pytest.raises(
        ShapeError, match=r"returns shape \(30, 4, 1\); a row of scores for each image, 'b n', is needed"
    ):
        evaluate(nn.Unflatten(1, (4, 1)), toy)


def test_a_line_an_epoch_and_after_so_many_batches(toy, capsys):
    lines = []
    history = fit(net(), toy, toy, epochs=2, log=lines.append, every=3, progress=False)
    assert [line.split(" | ")[:2] for line in lines[:2]] == [["Epoch 1/2", "batch 3/7"], ["Epoch 1/2", "batch 6/7"]]
    for epoch, line in enumerate((lines[2], lines[5])):
        loss, train, valid = history.train_loss[epoch], history.train_accuracy[epoch], history.valid_accuracy[epoch]
        expected = f"Epoch {epoch + 1}/2 | loss {loss:.3f} | train {100 * train:.1f} % | valid {100 * valid:.1f} % | "
        assert line == f"{expected}{history.seconds[epoch]:.1f} s"
    assert len(lines) == 6
    fit(net(), toy, epochs=1, log=print, progress=True)
    out, bar = capsys.readouterr()
    assert out.startswith("Epoch 1/1 | loss ")
    assert "valid" not in out
    assert out.count("\n") == 1
    assert "epoch 1/1" in bar


def test_lines_tell_the_batches_since_the_last_one():
    model, data = nn.Linear(1, 2), [(torch.full((n, 1), float(n)), torch.zeros(n).long()) for n in (1, 3, 2, 4)]
    losses, right, lines = [], [], []

    def criterion(scores, truth):
        losses.append(nn.functional.cross_entropy(scores, truth).item())
        right.append((scores.argmax(1) == truth).sum().item())
        return nn.functional.cross_entropy(scores, truth)

    history = fit(model, data, epochs=1, criterion=criterion, log=lines.append, every=2, progress=False)
    first = (losses[0] + 3 * losses[1]) / 4
    second = (2 * losses[2] + 4 * losses[3]) / 6
    assert lines[0] == f"Epoch 1/1 | batch 2/4 | loss {first:.3f} | train {100 * sum(right[:2]) / 4:.1f} %"
    assert lines[1] == f"Epoch 1/1 | batch 4/4 | loss {second:.3f} | train {100 * sum(right[2:]) / 6:.1f} %"
    assert history.train_loss[0] == pytest.approx((4 * first + 6 * second) / 10)
    assert history.train_accuracy[0] == pytest.approx(sum(right) / 10)


CRITERIA = {
    "smoothed": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        lambda s, t: nn.functional.cross_entropy(s, t, None, label_smoothing=0.1),
    ),
    "function": (lambda scores, truth: (scores.softmax(1) - torch.eye(2)[truth]).square().mean(), None),
    "squares": (nn.MSELoss(), lambda s, t: (s - torch.eye(2)[t]).square().mean()),
    "absolute": (nn.L1Loss(), lambda s, t: (s - torch.eye(2)[t]).abs().mean()),
    "each label": (
        nn.BCEWithLogitsLoss(),
        lambda s, t: -nn.functional.logsigmoid(s * (2 * torch.eye(2)[t] - 1)).mean(),
    ),
}


@pytest.mark.parametrize(("criterion", "oracle"), CRITERIA.values(), ids=CRITERIA)
def test_a_loss_of_ones_choice(toy, criterion, oracle):
    model, oracle = net(), oracle or criterion
    history = fit(model, toy, toy, epochs=8, lr=0.02, criterion=criterion, progress=False)
    assert history.valid_accuracy[-1] > 0.9
    inputs, truth = toy.dataset.tensors
    with torch.no_grad():
        expected = oracle(model.eval()(inputs), truth).item()
    assert history.valid_loss[-1] == pytest.approx(expected, rel=1e-4)
    assert evaluate(model, toy, criterion=criterion).loss == pytest.approx(expected, rel=1e-4)
    assert evaluate(model, toy).loss == pytest.approx(
        nn.functional.cross_entropy(model(inputs), truth).item(), rel=1e-4
    )


def test_a_single_logit_and_a_loss_of_values():
    truth = torch.tensor([0, 1, 0, 0])
    result = evaluate(nn.Identity(), DataLoader(TensorDataset(LOGITS, truth), 3), criterion=nn.BCEWithLogitsLoss())
    expected = nn.functional.binary_cross_entropy_with_logits(LOGITS[:, 0], truth.float()).item()
    assert result.loss == pytest.approx(expected)


def test_reprs_are_short(toy):
    history = fit(net(), toy, toy, epochs=2, progress=False)
    assert repr(history).startswith("TrainingCurves(2 epochs: train loss 0.")
    assert len(repr(history)) < 150
    heading, rule, *rows = str(history).splitlines()
    assert heading.split("  ")[0] == "epoch"
    assert len(heading) == len(rule)
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert history._repr_html_().count("<tr>") == 3
    assert repr(TrainingCurves((0.5,), (0.25,))) == (
        "TrainingCurves(1 epoch: train loss 0.500 → 0.500, train accuracy 25.0 % → 25.0 %)"
    )
    assert repr(TrainingCurves()) == "TrainingCurves(0 epochs)"
    assert repr(evaluate(nn.Identity(), [(4 * torch.eye(3), torch.tensor([0, 1, 1]))])) == (
        "Evaluation(accuracy 66.7 % (2 of 3), loss 1.369)"
    )


def test_evaluate_counts_by_truth_and_answer():
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 2]])
    truth = torch.tensor([0, 0, 1, 2])
    result = evaluate(nn.Identity(), DataLoader(TensorDataset(logits, truth), 3))
    assert result.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert result.confusion.dtype == torch.int64
    assert result.accuracy == 0.75
    assert torch.equal(result.logits, logits)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, truth).item())


LOGITS = torch.tensor([[-3.0], [2.0], [1.0], [-0.5]])


@pytest.mark.parametrize(
    ("scores", "head", "classes"),
    [
        (LOGITS, nn.Identity(), 2),
        (LOGITS, nn.Flatten(0), 2),
        (LOGITS, nn.Sigmoid(), 2),
        (torch.cat([-LOGITS, LOGITS], 1) / 2, nn.Identity(), 2),
        (torch.cat([-LOGITS, LOGITS], 1) / 2, nn.Softmax(1), 2),
    ],
    ids=["logit", "b", "probability", "logits", "probabilities"],
)
def test_evaluate_of_all_that_says_the_same(scores, head, classes):
    truth = torch.tensor([0, 1, 0, 0])
    chance = LOGITS[:, 0].sigmoid()
    expected = nn.functional.binary_cross_entropy(chance, truth.float()).item()
    for labels in (truth, truth[:, None].float(), torch.eye(2)[truth]):
        result = evaluate(head, DataLoader(TensorDataset(scores, labels), 3))
        assert result.loss == pytest.approx(expected, rel=1e-5)
        assert result.accuracy == 0.75
        assert result.confusion.tolist() == [[2, 1], [0, 1]]
        assert confusion(result.confusion, ["yes"]).rows == ("not yes", "yes")


def test_evaluate_of_dictionaries_and_of_several_labels():
    class Wrapped(nn.Module):
        def forward(self, x):
            return {"logits": x}

    data = [{"image": torch.tensor([2.0, 0.0]), "label": 0}, {"image": torch.tensor([2.0, 3.0]), "label": 0}]
    assert evaluate(Wrapped(), DataLoader(data, 2)).confusion.tolist() == [[1, 1], [0, 0]]
    result = evaluate(nn.Sigmoid(), DataLoader(TensorDataset(torch.eye(3) * 4, torch.arange(3)), 2))
    hot, away = torch.tensor(4.0).sigmoid(), torch.tensor(0.5)
    assert result.loss == pytest.approx(float(-(hot.log() + 2 * away.log()) / 3), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        ([0, 1, 2, 3, 4], OptionError, "labels must be from 0 to 3, the model's classes, got 4 in item 4"),
        ([0, 1, -1], OptionError, "got -1 in item 2"),
        ([0, 1, 0.5], DtypeError, r"the label of item 2 is 0\.5, not a class; set a target_transform"),
        ([torch.eye(4)] * 3, DtypeError, r"the label of item 0 is of shape \(4, 4\), a mask"),
        (["a", "b"], DtypeError, "the label of item 0 must be a class number, got the name 'a'"),
    ],
)
def test_labels_that_are_no_class_of_the_model(labels, error, words):
    data = [(torch.randn(4), label) for label in labels]
    for run in (evaluate, lambda *given: fit(*given, epochs=1, progress=False)):
        with pytest.raises(error, match=words):
            run(net_of_four(), DataLoader(data, 2))


def net_of_four():
    return nn.Sequential(nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("outputs", "head"),
    [(1, []), (1, [nn.Sigmoid()]), (2, [nn.Softmax(1)]), (2, [nn.Sigmoid()]), (1, [nn.Flatten(0)])],
    ids=["logit", "probability", "probabilities", "labels", "b"],
)
def test_fit_learns_by_what_the_scores_are(toy, outputs, head):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs), *head)
    history = fit(model, toy, toy, epochs=8, lr=0.02, progress=False)
    assert history.valid_accuracy[-1] > 0.95
    assert history.train_accuracy[-1] > 0.9
    assert history.train_loss[-1] < 0.3


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


def test_what_cannot_be_trained_is_said_before_anything_is():
    data = TensorDataset(torch.randn(4, 4), torch.tensor([0, 1, 2, 3]))
    loader = DataLoader(data, 2)
    for given, error, words in (
        ((loader, net_of_four()), DtypeError, "model must be a torch.nn.Module, got DataLoader"),
        ((net_of_four(), data), DtypeError, r"must yield batches .* got TensorDataset; DataLoader\(dataset, 64\)"),
        ((net_of_four(), (pair for pair in loader)), DtypeError, "and have a length, got generator"),
        ((net_of_four().requires_grad_(False), loader), OptionError, "the model has no parameters that learn"),
    ):
        with pytest.raises(error, match=words):
            fit(*given, epochs=1, progress=False)
    for optimizer in ("adam", torch.optim.Adam):
        with pytest.raises(OptionError, match=r"optimizer must be one, such as AdamW\(model.parameters\(\), 1e-3\)"):
            fit(net_of_four(), loader, epochs=1, progress=False, optimizer=optimizer)


def test_sums_are_shown_as_means_over_images(toy):
    both = []
    for reduction in ("sum", "mean"):
        model = net()
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        criterion = nn.CrossEntropyLoss(reduction=reduction)
        model[1].p = 0.0
        both.append(fit(model, toy, toy, epochs=1, optimizer=still, criterion=criterion, progress=False))
    for name in ("train_loss", "valid_loss"):
        assert getattr(both[0], name) == pytest.approx(getattr(both[1], name))
    assert both[0].train_loss == pytest.approx(both[0].valid_loss)


def test_a_sum_is_trained_on_as_it_is(toy):
    moved = []
    for reduction, lr in (("sum", 0.001), ("mean", 0.03)):
        model = net()
        model[1].p = 0.0
        few = [batch for batch in toy if len(batch[1]) == 30]
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        fit(
            model,
            few,
            epochs=1,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss(reduction=reduction),
            progress=False,
        )
        moved.append(model[0].weight.detach())
    torch.testing.assert_close(*moved)


def test_a_device_that_is_none_is_refused(toy):
    with pytest.raises(OptionError, match="device must be cpu, cuda, cuda:1, mps and the like, got 'cudda'"):
        fit(net(), toy, progress=False, device="cudda")
