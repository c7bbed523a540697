"""A monitor with pictures has bounded memory: what it draws of one step is not kept for all that follow."""

import gc
import tracemalloc

import pytest
import torch
from torch import nn

from torch_featviz.picture import text
from torch_featviz.training import Monitor


@pytest.fixture
def traced():
    """The bytes that Python holds, asked for by a call."""

    def held():
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start(1)
    yield held
    tracemalloc.stop()


def test_lines_that_are_drawn_once_are_not_kept(traced):
    def draw(first, last):
        for i in range(first, last):
            text.strip(f"kernels of 'features.0' at step {i}, {i} of them, and what is said of each of them", 14)
            text.strip(f"step {i}", 12)
            text.width(f"all of the maps that were drawn at step {i}", 12)

    draw(0, 10)
    before = traced()
    draw(10, 510)
    assert traced() - before < 6e6, "500 titles of 35 kB were 18 MB"


def test_labels_are_still_cached():
    assert text.strip("channel 7", 12) is text.strip("channel 7", 12)


class Seen:
    """A sink that draws all pictures and keeps none."""

    drawn = 0

    def write(self, record):
        self.drawn += sum(len(picture.png()) > 0 for picture in record.pictures.values())

    def close(self):
        pass


@pytest.mark.filterwarnings("ignore::torch_featviz.errors.FindingWarning")
def test_monitored_steps_with_pictures_do_not_grow_the_process(traced):
    net, sink = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)), Seen()
    optimizer = torch.optim.SGD(net.parameters(), 1e-4)

    def train(steps):
        for _ in range(steps):
            with watch.step() as step:
                loss = net(torch.ones(2, 1, 6, 6)).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                step.log(loss=loss)
        return traced(), len(gc.get_objects())

    with Monitor(net, every=1, probe=torch.ones(1, 1, 6, 6), to=sink, keep=4) as watch:
        bytes_before, objects_before = train(40)  # films are full: 32 frames
        bytes_after, objects_after = train(60)
    assert sink.drawn == 100 * 2, "kernels and maps of each step"
    assert bytes_after - bytes_before < 1e6
    assert objects_after - objects_before < 600, "less than ten objects a step"
