"""Runs every how-to as the notebook that the site offers: `python docs/notebooks.py`, after the site was built."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient

MADE = Path(__file__).with_name("howto")


def run(path: Path) -> str:
    """Run one notebook; raises what a cell of it raises."""
    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(MADE)}}).execute()
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    return f"{path.stem:12} {cells} cells, {time.perf_counter() - start:.0f} s"


def main() -> int:
    paths = sorted(MADE.glob("*.ipynb"))
    if not paths:
        print(f"there are no notebooks in {MADE}; build the site first.", file=sys.stderr)
        return 1
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two at a time, each on a core of its own
    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(run, paths):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
