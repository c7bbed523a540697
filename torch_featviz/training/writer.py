"""Writing off the training's thread: what is given is written in order, and no sink can stop the training."""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch_featviz.picture import Picture
from torch_featviz.warn import warn

from .sinks import Record, Sink

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
        self._stuck = False
        self._end: weakref.finalize[[_Work], Writer] | None = None
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start the thread, unless it runs."""
        if self._end is None and not self._stuck:
            self._thread = threading.Thread(target=self._work.run, name="torch_featviz writer", daemon=True)
            self._thread.start()
            self._end = weakref.finalize(self, _finish, self._work)

    def runs_here(self) -> bool:
        """Whether the current thread is the one that writes."""
        return threading.current_thread() is self._thread

    def put(self, record: Record, drawn: Mapping[str, Callable[[], Picture]]) -> None:
        """Have a record written soon, with the pictures that `drawn` makes; they are drawn in the other thread."""
        self.begin()
        try:
            if self._stuck:
                raise queue.Full
            self._work.queue.put((record, drawn), timeout=0 if self._lost else PATIENCE)
        except queue.Full:
            self._lost += 1
            if self._lost == 1:
                names = ", ".join(type(sink).__name__ for sink in self._sinks)
                warn(f"{names} cannot keep up: some steps are not written there. The history still has them.")
        self._tell()

    def close(self) -> None:
        """Wait until all is written, then close the sinks; a second call does nothing."""
        if self._end is not None:
            self._end()
            self._tell()
            if not self._work.done.is_set():
                self._stuck = True  # a second thread would write between the lines of the first
                names = ", ".join(type(sink).__name__ for sink in self._sinks)
                warn(
                    f"{names} still had {self._work.queue.qsize()} or more steps to "
                    f"write after {END:g} s; they are not written."
                )
            self._end, self._work = None, _Work(self._sinks)

    def _tell(self) -> None:
        while self._work.troubles:
            warn(self._work.troubles.pop(0))


class _Work:
    """What the thread knows; it does not know the writer, so that this can go."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.queue: queue.Queue[tuple[Record, Mapping[str, Callable[[], Picture]]] | None] = queue.Queue(ROOM)
        self.process = os.getpid()
        self.troubles: list[str] = []
        self.done = threading.Event()
        self._sinks = sinks
        self._told = set[int]()

    def run(self) -> None:
        """Write what comes until None does, then close the sinks."""
        while (given := self.queue.get()) is not None:
            record = replace(given[0], pictures=self._pictures(given[1]))
            for i, sink in enumerate(self._sinks):
                try:
                    sink.write(record)
                except BaseException as error:  # also one that would end a thread
                    self._trouble(
                        i,
                        f"{type(sink).__name__} could not write step {record.step} ({_words(error)}); "
                        "training goes on, later steps are tried again, and no more is said of it.",
                    )
        for i, sink in enumerate(self._sinks):
            try:
                sink.close()
            except BaseException as error:
                self._trouble(i, f"{type(sink).__name__} could not be closed ({_words(error)}).")
        self.done.set()

    def _pictures(self, drawn: Mapping[str, Callable[[], Picture]]) -> dict[str, Picture]:
        pictures = {}
        for name, draw in drawn.items():
            try:
                pictures[name] = draw()
            except Exception as error:
                self._trouble(-1, f"{name} could not be drawn ({_words(error)}); it is left out.")
        return pictures

    def _trouble(self, who: int, text: str) -> None:
        if who not in self._told:
            self._told.add(who)
            self.troubles.append(text)


def _finish(work: _Work) -> None:
    if os.getpid() != work.process:
        return  # in a fork there is no such thread
    deadline = time.monotonic() + END
    try:
        work.queue.put(None, timeout=END)
    except queue.Full:
        return
    work.done.wait(max(0.0, deadline - time.monotonic()))


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
