"""Several threads, and interrupts by a real signal at any moment."""

import signal
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from torch_featviz.capture import Moments, capture
from torch_featviz.errors import LayerError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))


def in_another_thread(call):
    """What `call` raises there, or None."""
    raised = []

    def run():
        try:
            call()
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0]


def enter(model, layers=None, **options):
    with capture(model, layers, **options):
        pass


@pytest.mark.parametrize("options", [{}, {"into": Moments()}, {"of": "grad"}, {"stop": True}])
@pytest.mark.parametrize(
    "other",
    [
        lambda model: (model, None),
        lambda model: (model, "2.1"),  # another layer, the same forward
        lambda model: (model[2], None),  # a part
        lambda model: (nn.Sequential(model), None),  # what holds it
    ],
)
def test_a_second_thread_is_refused(other, options, instance_state):
    model = net()
    before = instance_state(model)
    with capture(model, ["0", "2.0"]) as acts:
        error = in_another_thread(lambda: enter(*other(model), **options))
        assert isinstance(error, LayerError)
        assert "another thread" in str(error)
        model(torch.zeros(1, 1, 8, 8))
        assert list(acts) == ["0", "2.0"]
    assert instance_state(model) == before
    assert in_another_thread(lambda: enter(*other(model), **options)) is None


def test_threads_with_models_of_their_own(instance_state):
    models = [net() for _ in range(4)]
    before = [instance_state(model) for model in models]
    errors = []

    def work(model, value):
        try:
            for _ in range(50):
                x = torch.full((1, 1, 8, 8), value)
                with torch.no_grad(), capture(model) as acts:
                    model(x)
                    assert torch.equal(acts["0"], model[0](x))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(model, float(i))) for i, model in enumerate(models)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [instance_state(model) for model in models] == before


def test_an_interrupt_inside_the_forward(instance_state):
    class Interrupting(nn.Module):
        def forward(self, x):
            signal.raise_signal(signal.SIGINT)
            return x

    model = nn.Sequential(nn.Linear(2, 2), Interrupting(), nn.Linear(2, 2))
    before = instance_state(model)
    with pytest.raises(KeyboardInterrupt), capture(model):
        model(torch.zeros(1, 2))
    assert instance_state(model) == before


INTERRUPTED = """
import random, signal
import torch
from torch import nn
from torch_featviz.capture import capture

model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))
x, chance, hit = torch.zeros(1, 1, 8, 8), random.Random(0), 0
state = lambda: [sorted(module.__dict__) for module in model.modules()]
before = state()
with capture(model):
    model(x)
for _ in range(300):
    try:
        # again and again: an interrupt in a weakref's callback is swallowed by Python
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 1.5e-3), 1.0)
        while True:
            with capture(model):
                model(x)
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
        hit += 1
    assert state() == before, hit
print("interrupted", hit)
"""


def test_interrupts_at_any_moment():
    """In a process of its own: PyTorch's global state is not made for interrupts."""
    start = "import signal; signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
    done = subprocess.run([sys.executable, "-c", start + INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interrupted 300\n"
