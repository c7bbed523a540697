"""`stop=True`: the forward ends once all layers asked for have run."""

from __future__ import annotations

from collections.abc import Iterable


class Stopped(BaseException):
    """Every layer asked for has run; raised out of the forward, and caught where it began."""


class Stopping:
    """Ends a forward, where `active`, once each of some layers has run. Also traced by Dynamo."""

    def __init__(self, active: bool) -> None:
        self.active = active
        self._to_run: set[str] = set()

    def begin(self, names: Iterable[str]) -> None:
        """A forward begins, in which these layers have to run."""
        if self.active:
            self._to_run = set(names)

    @property
    def done(self) -> bool:
        """Whether each has run; else `Stopped` is another capture's."""
        return self.active and not self._to_run

    def ran(self, name: str) -> None:
        """A layer has run.

        Raises:
            Stopped: it was the last one.
        """
        self._to_run.discard(name)
        if not self._to_run:
            raise Stopped
