"""Threads that capture at once, and interrupts at any moment."""

import contextlib
import copyreg
import dis
import functools
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from torch_featviz.capture import Moments, capture, listening, session
from torch_featviz.errors import LayerError
from torch_featviz.inspect import summary

X = torch.randn(2, 3, 6, 6)


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(64, 2)).eval()


def in_thread(call):
    """What `call()` returned or raised, in another thread."""
    result = []

    def run():
        try:
            result.append(call())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


# Threads


def test_operators_are_defined_once_where_two_threads_begin(monkeypatch):
    """A second definition is an error."""

    class Listener:
        def arrived(self, layer, call, part, gradient):
            pass

    both, defined, listener = threading.Barrier(2), [], Listener()

    def define():
        if not defined:
            time.sleep(0.2)
            defined.append(threading.get_ident())

    def begin():
        both.wait()
        listening.end_listening(listening.begin_listening(listener))

    monkeypatch.setattr(listening, "_define", define)
    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(defined) == 1


@pytest.mark.parametrize("nth", [1, 3])
def test_operators_can_be_defined_after_an_interrupt(nth, monkeypatch):
    """Under another name, for they are defined already where a test before this one captured gradients."""

    class Listener:
        def arrived(self, layer, call, part, gradient):
            pass

    listener, implement, left = Listener(), listening._implement, [nth]
    listening.end_listening(listening.begin_listening(listener))

    def interrupted(*given, **keywords):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        implement(*given, **keywords)

    monkeypatch.setattr(listening, "_NAMESPACE", f"torch_featviz_test_{nth}")
    monkeypatch.setattr(listening, "_libraries", [])
    monkeypatch.setattr(listening, "_implement", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:  # with all its frames, as an interactive session does
        listening._define()
    assert listening._libraries == []
    listening._define()
    assert kept.tb is not None
    assert getattr(torch.ops, f"torch_featviz_test_{nth}").next_call(torch.tensor([1])).item() == 2
    listening.take_back(listening._libraries[0])


@pytest.mark.parametrize("mine", [None, "", "0", "0.0", ["0.2", "2"]])
@pytest.mark.parametrize("theirs", ["model", "part", "parent", "wrapper"])
@pytest.mark.parametrize("options", [{}, {"every": 2}, {"of": "grad"}])
def test_another_threads_capture_of_the_model_is_refused(mine, theirs, options, instance_state):
    model = network()
    parent = nn.Sequential(model)
    other = {"model": model, "part": model[0], "parent": parent, "wrapper": nn.DataParallel(model)}[theirs]
    before = instance_state(parent)
    with capture(model, mine) as acts:
        inside = instance_state(parent)
        error = in_thread(lambda: capture(other, **options).__enter__())
        assert isinstance(error, LayerError)
        assert "another thread is capturing this model" in str(error)
        assert instance_state(parent) == inside
        model(X)
    assert len(acts) > 0
    assert instance_state(parent) == before
    with capture(other, **options) as acts:  # once the first has ended
        parent(X)


def test_hooked_layers_are_no_way_around():
    model = network()
    model[0].register_forward_hook(lambda _m, _i, out: out)
    with capture(model[0], ""):
        error = in_thread(lambda: capture(model[0], "").__enter__())
    assert isinstance(error, LayerError)


def test_captures_of_one_thread_may_nest_while_another_captures_another_model():
    models = [network() for _ in range(4)]
    expected = [model[0][0](X) for model in models]
    failures = []

    def work(i):
        try:
            for _ in range(30):
                with torch.no_grad(), capture(models[i]) as acts, capture(models[i], "0.0", into=Moments()) as moments:
                    models[i](X * (i + 1))
                assert torch.equal(acts["0.0"], models[i][0][0](X * (i + 1)))
                assert moments["0.0"].count.tolist() == [32] * 4
                assert acts.not_run == []
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for model, value in zip(models, expected, strict=True):
        assert torch.equal(model[0][0](X), value)
        assert not any("forward" in vars(module) for module in model.modules())


CALLED, GO_ON = (threading.Event(), threading.Event()), (threading.Event(), threading.Event())


class Turns(nn.Module):
    """Tells that it was called, and waits until it may go on."""

    def __init__(self, i):
        super().__init__()
        self.i = i

    def forward(self, x):
        CALLED[self.i].set()
        assert GO_ON[self.i].wait(10)
        return x + 1


def gradients(model, x):
    with capture(model, of="grad"):
        model(x)


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("look", [summary, gradients])
def test_what_two_threads_look_at_leaves_dynamo_on(look, last):
    """PyTorch's dispatch modes and its stance are told by flags for all threads; each puts back what it found."""

    def compiled_frames():
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        torch.compile(lambda x: x.sin() + 1, backend=counter)(X)
        return counter.frame_count

    assert compiled_frames() == 1
    for event in (*CALLED, *GO_ON):
        event.clear()
    threads = [threading.Thread(target=look, args=(Turns(i), X)) for i in range(2)]
    for thread, called in zip(threads, CALLED, strict=True):
        thread.start()
        assert called.wait(10)
    for i in (1 - last, last):
        GO_ON[i].set()
        threads[i].join()
    assert compiled_frames() == 1


def test_two_threads_may_not_run_the_model_at_once_in_one_block():
    model, inside, go_on = network(), threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x):
            inside.set()
            go_on.wait(10)
            return x

    model = nn.Sequential(Waits(), model)
    with torch.no_grad(), capture(model) as acts:
        thread = threading.Thread(target=lambda: model(X))
        thread.start()
        inside.wait(10)
        try:
            with pytest.raises(
                LayerError,
                match="another thread is running this model inside the same "
                "capture block; run them one after the other",
            ):
                model(X)
        finally:
            go_on.set()
            thread.join()
    assert acts.not_run == []


def test_the_forward_may_run_in_another_thread():
    model = network()
    with torch.no_grad(), capture(model) as acts:
        output = in_thread(lambda: model(X))
    assert torch.equal(acts["2"], output.detach())


def test_two_compiled_models_captured_by_two_threads():
    models = [network() for _ in range(2)]
    fast = [torch.compile(model, backend="eager") for model in models]
    for model in fast:
        model(X)
    wrong = []

    def work(i):
        for _ in range(5):
            with torch.no_grad(), capture(fast[i]) as acts:
                fast[i](X * (i + 1))
            if not torch.allclose(acts["0.0"], models[i][0][0](X * (i + 1))):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Interrupts


@pytest.fixture
def _interrupts_are_raised():
    """Also where the tests run in the background of a shell, in which the signal is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interrupts_are_raised")
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


def test_interrupts_at_any_moment(forks):
    """In a process of its own: PyTorch's global state is not made for interrupts."""
    start = "import signal; signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
    done = forks.run(start + INTERRUPTED)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interrupted 300\n"


OURS = [str(file) for file in Path(session.__file__).parent.glob("*.py")]


def test_an_interrupt_at_the_call_of_exit(instance_state):
    """There nobody can catch it: the block ends when the last of those that could read it is gone."""
    model = network()
    before = instance_state(model)

    def interrupt(frame, event, _argument):
        if frame.f_code is capture(model).__exit__.__code__:
            raise KeyboardInterrupt

    def run():
        old = sys.gettrace()
        with capture(model) as acts:
            model(X)
            sys.settrace(interrupt)
        sys.settrace(old)
        return acts

    with pytest.raises(KeyboardInterrupt):
        run()
    assert instance_state(model) == before
    acts = capture(model).__enter__()  # of nobody else's, and goes on
    model(X)
    assert len(acts) == 5
    del acts
    assert instance_state(model) == before


@functools.cache
def checks(code):
    """Where Python looks for signals: after calls and on jumping back.

    Also before the first instruction of a function; that of `__exit__` is left out, since nobody can catch it there.
    """
    found, after_call = set(), False
    if code.co_name == "__del__":  # what is raised there is lost
        return frozenset()
    for step in dis.get_instructions(code):
        if after_call or "JUMP_BACKWARD" in step.opname or (step.opname == "RESUME" and code.co_name != "__exit__"):
            found.add(step.offset)
        after_call = step.opname.startswith("CALL")
    return frozenset(found)


class At:
    """Raises KeyboardInterrupt the n-th time that Python would look for signals in this package."""

    def __init__(self, n):
        self.n = n
        self.where = None

    def __call__(self, frame, event, _argument):
        if frame.f_code.co_filename not in [*OURS, "<string>"]:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in checks(frame.f_code):
            self.n -= 1
            if self.n == 0:
                self.where = f"{frame.f_code.co_name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self


def interrupted_at(n, run):
    tracer = At(n)
    old = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # before settrace(), or Python 3.12 tells of no instruction
    sys.settrace(tracer)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            run()
    finally:
        sys.settrace(old)
    return tracer


def uncompiled():
    """Whether force_eager, which some captures set for a while, was left."""
    return torch._dynamo.eval_frame._stance.stance == "force_eager"


def run_plain(model):
    with capture(model):
        model(X)


def run_nested(model):
    with capture(model, "0.0"), capture(model):
        model(X)


def run_sampled(model):
    with capture(model, "1", every=2):
        model(X)


def run_gradients(model):
    with capture(model, "0.0", of="grad"):
        model(X).sum().backward()


@pytest.mark.parametrize("run", [run_plain, run_nested, run_sampled, run_gradients])
def test_an_interrupt_at_any_instruction(run, instance_state):
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)), nn.Linear(6, 2))
    before, registered = instance_state(model), copyreg.dispatch_table.copy()
    n, left = 1, []
    while True:
        tracer = interrupted_at(n, functools.partial(run, model))
        if instance_state(model) != before:
            left.append((n, tracer.where))
            model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)), nn.Linear(6, 2))
            before = instance_state(model)
        assert torch.utils._python_dispatch._len_torch_dispatch_stack() == 0, tracer.where
        assert uncompiled() is False, tracer.where
        assert copyreg.dispatch_table == registered, tracer.where
        if tracer.n > 0:
            break
        n += 1
    assert left == []
    assert n > 20
