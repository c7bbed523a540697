import json
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import torch_featviz as fv
from torch_featviz.errors import FeatvizError, OptionError, ShapeError
from torch_featviz.picture import Chart


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x):
        time.sleep(0.02)
        return self.norm(self.conv(x)).mean((2, 3))


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 2, bias=False), nn.Dropout(0.5))


@pytest.fixture
def data():
    images = torch.randn(10, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, (images.mean((1, 2, 3)) > 0).long()), 4)


def test_every_figure_is_that_of_the_network(data):
    torch.manual_seed(0)
    nets = {"slow": Slow(), "linear": linear()}
    result = fv.compare(nets, data, rounds=3)
    slow, fast = result.networks
    assert (slow.name, fast.name) == ("slow", "linear")
    for net, found in zip(nets.values(), result.networks, strict=True):
        right = 0
        with torch.no_grad():
            net.eval()
            for image, label in data.dataset:
                right += int(net(image[None])[0].argmax() == label)
        assert found.accuracy == pytest.approx(right / 10)
    assert (fast.parameters, slow.parameters) == (72, 2 * 9 + 2 + 2 + 2)
    assert fast.megabytes == 72 * 4 / 2**20
    assert slow.megabytes == ((24 + 4) * 4 + 8) / 2**20  # with running statistics, and a count of 8 bytes
    assert (fast.multiply_adds, slow.multiply_adds) == (72, 2 * 9 * 16)
    assert 0.005 <= slow.seconds < 0.05, "0.02 s for 4 images"
    assert slow.ratio.median > 2
    assert fast.ratio == (1, 1, 1)
    assert (result.examples, result.batch, result.rounds, result.device) == (10, 4, 3, "cpu")


def test_it_prints_and_draws_itself(data):
    result = fv.compare({"a <b>": linear(), "other": linear()}, data, rounds=1)
    heading, rule, first, _, _, note = str(result).splitlines()
    assert heading.split("  ")[0] == "network"
    assert len(rule) == len(heading)
    assert first.startswith("a <b> ")
    assert first.split()[-3:] == ["72", "0.00", "72"]
    assert note == "accuracy on 10 images; time in batches of 4 on cpu, median of 1 rounds in turns"
    assert "a &lt;b&gt;" in result._repr_html_()
    assert repr(result) == "Comparison(2 networks: a <b>, other)"
    assert json.loads(json.dumps(result.as_dict()))["networks"][0]["parameters"] == 72
    picture = result.picture(title="Two")
    assert isinstance(picture, Chart)
    panels = picture.figure().axes
    assert [axes.get_title(loc="left") for axes in panels] == ["accuracy", "ms an image", "parameters", "multiply-adds"]
    assert panels[0].patches[0].get_width() == result.networks[0].accuracy
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["a <b>", "other"]


def test_images_alone_have_no_accuracy():
    result = fv.compare({"linear": linear()}, torch.rand(100, 1, 6, 6), rounds=1)
    assert (result.networks[0].accuracy, result.examples, result.batch) == (None, 0, 64)
    assert "accuracy on" not in str(result)
    assert len(result.picture().figure().axes) == 3
    assert fv.compare({"linear": linear()}, torch.rand(1, 6, 6), rounds=1).batch == 1


def test_all_are_given_the_same_images_also_where_they_vary():
    class Noise(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            return torch.randn(1, 6, 6), i % 2

    net, state = linear(), torch.get_rng_state()
    result = fv.compare({"one": net, "two": net}, DataLoader(Noise(), 8, shuffle=True), rounds=1)
    assert result.networks[0].accuracy == result.networks[1].accuracy
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: fv.compare({}, torch.rand(1, 1, 6, 6)), OptionError, r"models must be networks by name.* got \{\}"),
        (lambda: fv.compare([linear()], torch.rand(1, 1, 6, 6)), OptionError, "models must be networks by name"),
        (lambda: fv.compare({"a": linear()}, torch.rand(1, 1, 6, 6), rounds=0), OptionError, "at least 1, got 0"),
        (lambda: fv.compare({"a": linear()}, []), ShapeError, "data must yield at least one batch, got none"),
        (
            lambda: fv.compare({"a": linear()}, torch.rand(2, 1, 5, 5)),
            ShapeError,
            "'a': Sequential does not accept inputs",
        ),
        (
            lambda: fv.compare({"a": linear()}, [(torch.rand(2, 1, 6, 6), torch.tensor([0, 5]))]),
            OptionError,
            "'a': labels must be from 0 to 1",
        ),
        (lambda: fv.compare({"a": 3}, torch.rand(2, 1, 5, 5)), FeatvizError, "'a': "),
    ],
)
def test_bad_input_says_what_to_do(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_generator_is_read_once_and_wholly(data):
    batches = list(data)
    nets = {"a": linear(), "b": linear()}
    found = fv.compare(nets, (batch for batch in batches), rounds=1)
    expected = fv.compare(nets, batches, rounds=1)
    assert found.examples == expected.examples == sum(len(batch[1]) for batch in batches)
    assert [net.accuracy for net in found.networks] == [net.accuracy for net in expected.networks]
