"""Written beside the training, in order, all of it, whatever a sink does."""

import gc
import threading
import time
import warnings

import pytest

from torch_featviz.errors import FeatvizWarning
from torch_featviz.training import Sample, writer
from torch_featviz.training.sinks import Record
from torch_featviz.training.writer import Writer


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self, wait=0.0, fails=()):
        self.steps, self.threads, self.closed = [], set(), 0
        self.wait, self.fails = wait, fails

    def write(self, record):
        time.sleep(self.wait)
        self.threads.add(threading.current_thread())
        if record.step in self.fails:
            raise OSError(28, "No space left on device")
        self.steps.append(record.step)

    def close(self):
        self.closed += 1


def put(to, *steps):
    for step in steps:
        to.put(Record(Sample(step, {}, {})), {})


def alive():
    return [thread for thread in threading.enumerate() if thread.name == "torch_featviz writer"]


def test_all_in_order_in_one_other_thread():
    a, b = Kept(), Kept(wait=0.001)
    to = Writer([a, b])
    put(to, *range(50))
    to.close()
    assert a.steps == b.steps == list(range(50))
    assert len(a.threads) == 1
    assert threading.current_thread() not in a.threads
    assert (a.closed, b.closed) == (1, 1)
    to.close()
    assert a.closed == 1
    assert not alive()
    put(to, 50)  # it may go on
    to.close()
    assert a.steps[-1] == 50


def test_no_thread_before_there_is_something_to_write():
    to = Writer([Kept()])
    assert not alive()
    to.close()


def test_what_waits_is_written_when_the_writer_goes():
    sink = Kept(wait=0.01)
    to = Writer([sink])
    put(to, 0, 1, 2)
    del to
    gc.collect()
    assert sink.steps == [0, 1, 2]
    assert sink.closed == 1
    assert not alive()


def test_a_sink_that_fails_is_told_once_and_the_others_go_on():
    bad, good = Kept(fails=(1, 2, 4)), Kept()
    to = Writer([bad, good])
    with pytest.warns(FeatvizWarning) as told:  # noqa: PT031
        for step in range(6):
            put(to, step)
            time.sleep(0.01)
        to.close()
    assert [str(each.message) for each in told] == [
        "Kept could not write step 1 (OSError: [Errno 28] No space left on device); "
        "training goes on, later steps are tried again, and no more is said of it."
    ]
    assert told[0].filename == __file__
    assert bad.steps == [0, 3, 5]
    assert good.steps == list(range(6))


def test_what_cannot_be_drawn_is_told_once_and_left_out():
    class Pictures(Kept):
        def write(self, record):
            self.steps.append((record.step, sorted(record.pictures)))

    sink = Pictures()
    to = Writer([sink])
    with pytest.warns(FeatvizWarning, match=r"bad could not be drawn \(ZeroDivisionError.*it is left out") as told:  # noqa: PT031
        for step in range(3):
            to.put(Record(Sample(step, {}, {})), {"bad": lambda: 1 // 0, "good": lambda: "a picture"})
        to.close()
    assert len(told) == 1
    assert sink.steps == [(step, ["good"]) for step in range(3)]


def test_what_would_end_a_thread_ends_no_writing():
    class Exits(Kept):
        def write(self, record):
            raise SystemExit(3)

    good = Kept()
    to = Writer([Exits(), good])
    put(to, 0)
    with pytest.warns(FeatvizWarning, match=r"Exits could not write step 0 \(SystemExit: 3\)"):
        to.close()
    assert good.steps == [0]


def test_a_sink_that_hangs_costs_the_training_its_patience_once(monkeypatch):
    monkeypatch.setattr(writer, "PATIENCE", 0.05)
    monkeypatch.setattr(writer, "END", 0.2)
    released = threading.Event()

    class Hangs(Kept):
        def write(self, record):
            released.wait()
            super().write(record)

    sink = Hangs()
    to = Writer([sink])
    with pytest.warns(FeatvizWarning, match="Hangs cannot keep up: some steps are not written there") as told:
        put(to, *range(100))
    assert len(told) == 1
    with pytest.warns(FeatvizWarning, match="Hangs still had 8 or more steps to write"):
        to.close()  # comes back, though nothing was written
    assert sink.steps == []
    put(to, 100)  # no second thread
    assert len(alive()) == 1
    released.set()
    for thread in alive():
        thread.join(1)


def test_a_sink_that_cannot_be_closed_is_told():
    class Stuck(Kept):
        def close(self):
            raise ValueError("no")

    to = Writer([Stuck()])
    put(to, 0)
    with pytest.warns(FeatvizWarning, match=r"Stuck could not be closed \(ValueError: no\)"):
        to.close()


def test_the_end_of_the_process_writes_what_waits(tmp_path, forks):
    code = """
import pathlib, sys, time
from torch_featviz.training import Sample
from torch_featviz.training.sinks import Record
from torch_featviz.training.writer import Writer
class Slow:
    def write(self, record):
        time.sleep(0.05)
        with open(sys.argv[1], "a") as file:
            file.write(f"{record.step}\\n")
    def close(self):
        with open(sys.argv[1], "a") as file:
            file.write("closed\\n")
to = Writer([Slow()])
for step in range(5):
    to.put(Record(Sample(step, {}, {})), {})
raise SystemExit(int(sys.argv[2]))
"""
    path = tmp_path / "steps"
    done = forks.run(code, path, 3)
    assert (done.returncode, done.stderr) == (3, "")
    assert path.read_text().split() == ["0", "1", "2", "3", "4", "closed"]


def test_nothing_is_said_where_nothing_fails():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to = Writer([Kept()])
        put(to, 1)
        to.close()
