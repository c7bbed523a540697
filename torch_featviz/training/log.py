"""All that a `Monitor` has seen: history, films, findings and sinks, to which each step is added."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from threading import RLock

from torch_featviz.errors import FindingWarning
from torch_featviz.picture import Scale
from torch_featviz.warn import warn

from .findings import Findings, Globs
from .frames import Frames
from .history import History
from .look import Look
from .sinks import Record
from .writer import Writer


class Log:
    """Takes one `Look` after the other; the last may wait to be read.

    Args:
        history: to which samples are added.
        scales: of films, by name.
        writer: for the sinks, if there are any.
        tells: whether it warns.
        ignore: what is not told, see `Findings`.
    """

    def __init__(
        self,
        history: History,
        scales: dict[str, Scale],
        writer: Writer | None,
        *,
        tells: bool,
        ignore: Mapping[str, Globs] | None = None,
    ) -> None:
        self.history, self.findings = history, Findings(ignore)
        self.frames: dict[str, Frames] = {}
        self._scales, self._writer, self._tells = scales, writer, tells
        self._named = set[str]()  # layers of which it was told that there are no figures
        self._waiting: Look | None = None
        self._lock = RLock()  # two threads may read

    def take(self, look: Look, *, wait: bool) -> None:
        """Add a step, and before it the one that waits; with `wait` it now waits itself, until `finish`."""
        with self._lock:
            try:
                self.finish()
                self._name(look.left_out)
                self._cut_from(look.step)
            finally:
                self._waiting = look
            if not wait:
                self.finish()
            elif self._writer:
                self._writer.begin()  # where the interpreter ends, no thread can begin any more

    def finish(self, *, quietly: bool = False) -> None:
        """Add the step that waits, if one does; not in the thread of the sinks, for which it would wait.

        With `quietly` nothing is raised: where a training fails, its own error is the one to see.
        """
        if self._waiting is None or (self._writer and self._writer.runs_here()):
            return
        with self._lock, suppress(*[Exception] * quietly):
            look, self._waiting = self._waiting, None
            if look is not None:
                self._add(look)

    def close(self) -> None:
        """Add what waits, wait until all is written, and let go of the sinks."""
        try:
            self.finish()
        finally:
            if self._writer:
                self._writer.close()

    def _name(self, left_out: Mapping[str, str]) -> None:
        without = {name: why for name, why in left_out.items() if name not in self._named}
        self._named |= without.keys()
        for name, why in without.items() if self._tells else ():
            warn(f"the monitor has no figures of layer {name!r}: {why}")

    def _cut_from(self, step: int) -> None:
        if late := self.history.cut_from(step):
            for each in self.frames.values():
                each.cut_from(step)
            if self._tells:
                there = f"samples of steps {late[0]} to {late[-1]} exist already"
                warn(f"{there}; those from step {step} on are replaced.")

    def _add(self, look: Look) -> None:
        sample, account, frames = look.read()
        self.history.append(sample)
        drawn = {name: self._frames_of(name).add(frame) for name, frame in frames.items()}
        new = tuple(self.findings.look(sample, account))
        if self._writer:
            self._writer.put(Record(sample, new), drawn)
        for finding in new if self._tells else ():
            warn(finding.text, FindingWarning)

    def _frames_of(self, name: str) -> Frames:
        if name not in self.frames:
            self.frames[name] = Frames(name, self._scales.get(name))
        return self.frames[name]
