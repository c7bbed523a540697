"""A step that is begun and ended by separate calls; and what is told where a trainer's package is missing."""

import gc

import torch
from torch import nn

from torch_featviz.training import Monitor
from torch_featviz.training.steps import Steps


def test_steps_begin_and_end():
    net = nn.Linear(2, 2)
    steps = Steps()
    steps.begin(3)  # no Monitor yet: nothing happens
    steps.end()
    steps.close()
    assert not steps.open
    steps.start(net, 1, None, every=2)
    watch = steps.watch
    for number in range(5):
        steps.begin(number)
        assert (steps.open, steps.number) == (True, number)
        net(torch.ones(1, 2))
        steps.end()
        assert not steps.open
        steps.end()
    assert watch.history.steps == [0, 2, 4]
    assert "forward" not in vars(net)


def test_a_step_that_never_ended_is_abandoned():
    net = nn.Linear(2, 2)
    steps = Steps(watch := Monitor(net, every=1))
    steps.begin(0)
    steps.begin(1)
    assert watch.history.steps == [0]
    steps.close()
    assert watch.history.steps == [0, 1]
    assert "forward" not in vars(net)


def test_the_monitor_is_told_of_the_error():
    told = []

    class Block:
        def __enter__(self):
            pass

        def __exit__(self, kind, error, trace):
            told.append((kind, error))

    class Watch:
        closed = 0

        def step(self, number):
            return Block()

        def __exit__(self, kind, error, trace):
            assert (kind, error) == told[-1]
            self.closed += 1

    steps = Steps(watch := Watch())
    for end in (steps.end, steps.close):
        steps.begin(0)
        end(error := ValueError("broken"))
        assert told.pop() == (ValueError, error)
        steps.begin(0)
        end()
        assert told.pop() == (None, None)
    steps.begin(0)
    steps.abandon()
    assert told.pop()[0] is GeneratorExit
    assert watch.closed == 2
    gc.collect()
    assert not told


def test_another_monitor_goes_on_from_what_one_has_seen():
    net, first, second = nn.Linear(2, 2), Steps(), Steps()
    first.start(net, 1, None, every=1)
    first.begin(0)
    net(torch.ones(1, 2))
    first.end()
    second.start(net, 1, first.watch.state_dict(), every=1)
    assert list(second.watch.history) == list(first.watch.history) != []


GROUP = """
import os, sys
import torch
from torch import nn
from torch_featviz.training.steps import Steps

torch.distributed.init_process_group("gloo", f"file://{sys.argv[1]}/store", rank=0, world_size=1)
steps = Steps()
for ranks, group in ((1, None), (2, torch.distributed.group.WORLD)):
    steps.start(nn.Linear(2, 2), ranks, None)
    assert steps.watch._group is group
print("seen", flush=True)
os._exit(0)  # torch 2.6 may wait for ever for the threads of a group that ends
"""


def test_ranks_are_a_group(tmp_path, forks):
    done = forks.run(GROUP, tmp_path)
    assert done.stdout == "seen\n", done.stderr


SHELLS = """
import sys
from types import ModuleType
import torch_featviz
from torch_featviz.training import *
assert Monitor is torch_featviz.Monitor
asked = {"lightning", "pytorch_lightning", "transformers", "accelerate", "ignite", "tensorboard", "wandb", "mlflow"}
assert not asked & set(sys.modules), asked & set(sys.modules)

import torch_featviz.training as training
from torch_featviz.errors import MissingError
sys.modules.update(dict.fromkeys(asked))  # not to be found
for name, extra in {"LightningMonitor": "lightning", "HFMonitor": "transformers", "attach_ignite": "ignite"}.items():
    assert name in dir(training)
    try:
        getattr(training, name)
    except MissingError as error:
        assert isinstance(error, ImportError)
        assert str(error).startswith(f"{name} needs `pip install 'torch_featviz[{extra}]'`: there is no "), error
    else:
        raise SystemExit(f"{name} came from nowhere")
try:
    training.nothing
except AttributeError as error:
    assert "has no attribute 'nothing'" in str(error)
else:
    raise SystemExit("nothing was found")

old = sys.modules["pytorch_lightning"] = ModuleType("pytorch_lightning")
old.Callback = type("Callback", (), {})
assert issubclass(training.LightningMonitor, old.Callback)
"""


def test_trainers_are_imported_when_asked_for(forks):
    done = forks.run(SHELLS)
    assert done.returncode == 0, done.stderr
