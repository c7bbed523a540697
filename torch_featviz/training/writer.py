"""Writing off the training's thread: what is given is written in order, and no sink can stop the training."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from .sinks import Record, Sink
from .warn import warn

ROOM = 8  # steps that wait to be written
PATIENCE = 10.0  # seconds that the training waits for room, once; then it goes on without
END = 60.0  # seconds that closing waits for what is left


class Writer:
    """A thread that gives records to sinks.

    The thread begins with the first record and ends with `close`, when this object goes, or with the process; what
    waits is written first. What fails, and what found no room, is told once as a warning, in the training's thread,
    and the training goes on.

    Args:
        sinks: each gets every record; one that fails does not keep it from the others.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._work = _Work(sinks)
        self._lost = 0
        self._end: weakref.finalize[[_Work], Writer] | None = None

    def put(self, make: Callable[[], Record]) -> None:
        """Have what `make` returns written soon; it is called in the other thread."""
        if self._end is None:
            threading.Thread(target=self._work.run, name="torch_featviz writer", daemon=True).start()
            self._end = weakref.finalize(self, _finish, self._work)
        try:
            self._work.queue.put(make, timeout=0 if self._lost else PATIENCE)
        except queue.Full:
            self._lost += 1
            if self._lost == 1:
                names = ", ".join(type(sink).__name__ for sink in self._sinks)
                warn(f"{names} cannot keep up: some steps will not be written there; the history has them.")
        self._tell()

    def close(self) -> None:
        """Wait until all is written, then close the sinks; a second call does nothing."""
        if self._end is not None:
            self._end()
            self._tell()
            self._end, self._work = None, _Work(self._sinks)

    def _tell(self) -> None:
        while self._work.troubles:
            warn(self._work.troubles.pop(0))


class _Work:
    """What the thread knows; it does not know the writer, so that this can go."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.queue: queue.Queue[Callable[[], Record] | None] = queue.Queue(ROOM)
        self.troubles: list[str] = []
        self.done = threading.Event()
        self._sinks = sinks
        self._told = set[int]()

    def run(self) -> None:
        while (make := self.queue.get()) is not None:
            try:
                record = make()
            except Exception as error:
                self._trouble(-1, f"a step could not be drawn ({_words(error)}) and was not written.")
                continue
            for i, sink in enumerate(self._sinks):
                try:
                    sink.write(record)
                except Exception as error:
                    self._trouble(
                        i,
                        f"{type(sink).__name__} could not write step {record.step} ({_words(error)}); "
                        "training goes on, later steps are tried again, and no more is said of it.",
                    )
        for i, sink in enumerate(self._sinks):
            try:
                sink.close()
            except Exception as error:
                self._trouble(i, f"{type(sink).__name__} could not be closed ({_words(error)}).")
        self.done.set()

    def _trouble(self, who: int, text: str) -> None:
        if who not in self._told:
            self._told.add(who)
            self.troubles.append(text)


def _finish(work: _Work) -> None:
    deadline = time.monotonic() + END
    try:
        work.queue.put(None, timeout=END)
    except queue.Full:
        return
    work.done.wait(max(0.0, deadline - time.monotonic()))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
