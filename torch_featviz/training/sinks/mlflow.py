"""What a `Monitor` saw, in MLflow."""

from __future__ import annotations

import json
import posixpath
import re
import time
from typing import TYPE_CHECKING

from .sink import Record, numbers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_BATCH = 1000  # metrics that MLflow takes at once
_LONGEST = 250  # name of a metric


class MLflowSink:
    """Logs scalars as metrics, pictures as images, and all of a step as one JSON artifact, to an MLflow run.

    Metrics are named figure first, as `std/features.0`. In names of metrics and images, what MLflow does not allow
    becomes `_`, and of names over 250 characters the end is kept; `featviz/step-00000400.json` has the names as they
    are, the histograms, and the findings. There, what JSON has no number for is "nan", "inf" or "-inf".
    Findings are also a text that can be read in the browser, `featviz/findings-00000400.txt`.

    Args:
        run: what `mlflow.start_run()` or a client returned, ended or not. It stays yours: `close` does not end it.
        client: the `MlflowClient` to use; default: one of the tracking URI that is set now. Not the active run of
            `mlflow`, which is that of a thread.
    Example:
        ```
        with mlflow.start_run() as run:
            MLflowSink(run).write(Record(watch.history[-1]))
        ```
    """

    def __init__(self, run: Run, *, client: MlflowClient | None = None) -> None:
        from mlflow import MlflowClient  # noqa: PLC0415  it is there, as a run of it is

        self._run: str = run.info.run_id
        self._client = client or MlflowClient()

    def write(self, record: Record) -> None:
        """Log one step; it is stored when this returns."""
        self._metrics(record)
        for name, picture in record.pictures.items():
            self._client.log_image(self._run, picture.numpy(), key=_name(name), step=record.step, synchronous=True)
        content = json.dumps(record.as_dict(), allow_nan=False)
        self._client.log_text(self._run, content, f"featviz/step-{record.step:08}.json")
        if record.findings:
            lines = "".join(f"{each.text}\n" for each in record.findings)
            self._client.log_text(self._run, lines, f"featviz/findings-{record.step:08}.txt")

    def close(self) -> None:
        """Nothing is held; whoever started the run ends it."""

    def _metrics(self, record: Record) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        metrics = [Metric(_name(name), value, now, record.step) for name, value in numbers(record.sample).items()]
        for i in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run, metrics[i : i + _BATCH], synchronous=True)


def _name(name: str) -> str:
    """As MLflow allows it, on any system: a relative path, of few characters."""
    path = posixpath.normpath(re.sub(r"[^A-Za-z0-9_/. -]", "_", name))
    figure, _, rest = path.partition("/")
    return path if len(path) <= _LONGEST else f"{figure}/{rest[len(path) - _LONGEST :]}"
