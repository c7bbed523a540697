"""What a checkpoint keeps of a `Monitor`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch_featviz.errors import FileError
from torch_featviz.schema import Between, Count, SchemaError, decoded, restored

from .findings import FindingsState
from .history import Sample
from .noise import NoiseState


@dataclass(frozen=True)
class Samples:
    """The samples of a history, and how it was thinned."""

    items: list[Sample]
    stride: Annotated[int, Between(1)]
    seen: Count

    def __post_init__(self) -> None:
        regular = math.ceil(self.seen / self.stride)
        if not regular <= len(self.items) <= regular + 1:
            raise SchemaError(f"{regular} or {regular + 1} samples, got {len(self.items)}", ".items")
        for i in range(1, len(self.items)):
            before, step = self.items[i - 1].step, self.items[i].step
            if step <= before:
                raise SchemaError(f"more than {before}, the step before, got {step}", f".items[{i}].step")


@dataclass(frozen=True)
class MonitorState:
    """What `Monitor.state_dict` returns."""

    step: Count
    samples: Samples
    findings: FindingsState
    noise: NoiseState | None = None


def read_state(file: Path) -> dict[str, Any]:
    """The state that was written to a file of JSON.

    Raises:
        FileError: the file cannot be read, or holds something else.
    """
    try:
        state: dict[str, Any] = decoded(file.read_bytes())
        restored(MonitorState, state)
    except SchemaError as error:
        raise FileError(f"{str(file)!r} holds no state of a Monitor: {error}; delete it to start anew.") from error
    except OSError as error:
        raise FileError(f"cannot read {str(file)!r}: {error.strerror or error}.") from error
    return state
