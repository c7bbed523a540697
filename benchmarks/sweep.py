"""Ask seven questions of models of torchvision, timm and transformers, and hold each answer against another way.

pip install -e '.[timm,transformers]' && python benchmarks/sweep.py --out benchmarks/sweep.md

Each model is looked at in a process of its own, for so many seconds at most, without weights: all works offline. Rows
are written as they are known, and a sweep that was ended goes on where it was.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.sweep_models import Subject, subjects

QUESTIONS = {
    "capture": "what each layer returned, to the bit, and nothing else changed, as `fv.prove` claims",
    "heatmap": "the map that a class's score depends on: gradients are cut there, and what comes later is looked at",
    "attention": "weights of each layer and head, beside softmaxes seen as functions, and what the library tells",
    "overview": "the layers drawn, each in the proportions of the image",
    "kernels": "those drawn, as one delta for each tap finds them, and noise",
    "summary": "layers, parameters, shapes and calls",
    "shapes": "of each layer, without computing one",
}
TWELVE = (
    "torchvision:squeezenet1_1",
    "torchvision:mobilenet_v3_small",
    "torchvision:googlenet",
    "torchvision:lraspp_mobilenet_v3_large",
    "timm:test_vit",
    "timm:test_convnext",
    "timm:test_resnet",
    "timm:test_maxvit",
    "transformers:Swin",
    "transformers:Dinov2WithRegisters",
    "transformers:ConvNext",
    "transformers:PoolFormer",
)  # that CI looks at
GIB = 2**30


def look(subject: Subject, asked: Sequence[str], answer: Any) -> None:
    """In a process of its own: these checks of one model."""
    import warnings  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from benchmarks.sweep_checks import look_at  # noqa: PLC0415
    from benchmarks.sweep_models import build  # noqa: PLC0415

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    built = build(subject.name)
    parameters = sum(parameter.numel() for parameter in built.net.parameters())
    found = {check: finding._asdict() for check, finding in look_at(built, asked).items()}
    answer.send({"parameters": parameters, "size": list(built.images.shape[1:]), "found": found})


def row(subject: Subject, asked: Sequence[str], limit: float, context: Any) -> dict[str, Any]:
    """What came of one model, or why nothing did."""
    ours, theirs = context.Pipe(duplex=False)
    began = perf_counter()
    process = context.Process(target=look, args=(subject, asked, theirs))
    process.start()
    theirs.close()
    known: dict[str, Any] = {}
    try:
        known = ours.recv() if ours.poll(limit) else {"failed": f"not done after {limit:.0f} s"}
    except EOFError:
        process.join()
        known = {"failed": f"ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()
    return {"name": subject.name, "family": subject.family, "seconds": round(perf_counter() - began, 1), **known}


def sweep(
    wanted: Sequence[Subject],
    rows: Path,
    *,
    limit: float,
    total: float,
    processes: int,
    asked: Sequence[str] = tuple(QUESTIONS),
) -> list[dict[str, Any]]:
    """Rows of all that are wanted; what is in the file is not asked again."""
    known = _read(rows)
    ends, lock = perf_counter() + total, threading.Lock()
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchvision", "timm", "transformers", "benchmarks.sweep_checks"])

    def one(subject: Subject) -> None:
        entry = known.get(subject.name, {})
        missing = () if "failed" in entry else [check for check in asked if check not in entry.get("found", {})]
        if not missing or perf_counter() > ends:
            return
        entry = row(subject, missing, limit, context)
        with lock, rows.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            known[subject.name] = _joined(known.get(subject.name), entry)
            print(_line(entry), flush=True)

    rows.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(processes) as pool:
        for done in as_completed([pool.submit(one, subject) for subject in wanted]):
            done.result()
    return [known[subject.name] for subject in wanted if subject.name in known]


def _read(rows: Path) -> dict[str, dict[str, Any]]:
    """What is known of each model, from one row or several."""
    known: dict[str, dict[str, Any]] = {}
    for entry in map(json.loads, rows.read_text().splitlines() if rows.exists() else ()):
        known[entry["name"]] = _joined(known.get(entry["name"]), entry)
    return known


def _joined(earlier: dict[str, Any] | None, entry: dict[str, Any]) -> dict[str, Any]:
    if earlier is None or "failed" in earlier:
        return entry
    seconds = round(earlier["seconds"] + entry["seconds"], 1)
    return {**earlier, **entry, "seconds": seconds, "found": {**earlier["found"], **entry.get("found", {})}}


def _line(entry: dict[str, Any]) -> str:
    if "failed" in entry:
        return f"{entry['name']}: {entry['failed']}"
    said = [f"{check} {found['state']}: {found['text']}" for check, found in entry["found"].items()]
    wrong = [text for text, found in zip(said, entry["found"].values(), strict=True) if found["state"] == "wrong"]
    return f"{entry['name']} ({entry['seconds']} s): {'; '.join(wrong) or 'nothing wrong'}"


def faults(entries: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong, not done, or large, and of which model."""
    lines = []
    for entry in entries:
        if "failed" in entry:
            lines.append(f"{entry['name']}: {entry['failed']}")
        for check, found in entry.get("found", {}).items():
            if found["state"] == "wrong":
                lines.append(f"{entry['name']}, {check}: {found['text']}")
    return lines + large(entries)


def large(entries: Iterable[dict[str, Any]]) -> list[str]:
    """Which answers take over 2 GiB beside the weights. Capture's has each layer's output twice."""
    return [
        f"{entry['name']}, {check}: takes {found['grown'] / GIB:.1f} GiB"
        for entry in entries
        for check, found in entry.get("found", {}).items()
        if found["grown"] > 2 * GIB
    ]


def table(entries: Sequence[dict[str, Any]]) -> str:
    """All rows as a page of Markdown."""
    import timm  # noqa: PLC0415
    import torch  # noqa: PLC0415
    import torchvision  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    versions = (f"{package.__name__} {package.__version__}" for package in (torch, torchvision, timm, transformers))
    libraries = Counter(entry["name"].partition(":")[0] for entry in entries)
    wrong, much = faults(entries), large(entries)
    refused = [
        f"{entry['name']}, {check}: {found['text']}"
        for entry in entries
        for check, found in entry.get("found", {}).items()
        if found["state"] in ("refused", "partly")
    ]
    ended = [entry["name"] for entry in entries if "failed" in entry]
    lines = [
        "# Seven questions to each of many models",
        "",
        f"`python benchmarks/sweep.py --out benchmarks/sweep.md`, {date.today()}, Python {platform.python_version()}, "
        f"{', '.join(versions)}, on a CPU, without weights.",
        "",
        *(f"- **{check}**: {asked}." for check, asked in QUESTIONS.items()),
        "",
        f"{len(entries)} models ({', '.join(f'{n} of {name}' for name, n in libraries.items())}); "
        f"{len(wrong) - len(ended) - len(much)} wrong answers, {len(much)} that take more than 2 GiB, "
        f"{len(ended)} models not done, {len(refused)} refusals with a reason. "
        "'GiB' is the most memory that any answer "
        "took beside the model's weights.",
        "",
        f"| model | family | parameters | input | {' | '.join(QUESTIONS)} | GiB | s |",
        f"|---|---|--:|---|{'---|' * len(QUESTIONS)}--:|--:|",
        *map(_row, entries),
        "",
        "## Wrong, large, or not done",
        "",
        *([f"- {line}" for line in wrong] or ["None."]),
        "",
        "## Refused",
        "",
        *([f"- {line}" for line in refused] or ["None."]),
    ]
    return "\n".join(lines) + "\n"


def _row(entry: dict[str, Any]) -> str:
    if "failed" in entry:
        cells = [entry["name"], entry["family"], "", "", f"**{entry['failed']}**"]
        return f"| {' | '.join([*cells, *[''] * len(QUESTIONS), str(entry['seconds'])])} |"
    found = entry["found"]
    texts = [_cell(found.get(check, {"state": "not asked"})) for check in QUESTIONS]
    grown = max(finding["grown"] for finding in found.values()) / GIB
    size = "×".join(map(str, entry["size"]))
    cells = [entry["name"], entry["family"], f"{entry['parameters']:,}", size, *texts, f"{grown:.2f}"]
    return f"| {' | '.join([*cells, str(entry['seconds'])])} |"


def _cell(finding: dict[str, Any]) -> str:
    """The answer, or that it is wrong or refused; the reasons stand below the table."""
    if finding["state"] in ("right", "partly"):
        return str(finding["text"].partition(": ")[0] if finding["state"] == "partly" else finding["text"])
    return f"**{finding['state']}**"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of models, such as timm:test_vit; default all")
    parser.add_argument("--twelve", action="store_true", help="the twelve that CI looks at")
    parser.add_argument("--ask", nargs="+", choices=QUESTIONS, default=tuple(QUESTIONS), help="some of the questions")
    parser.add_argument("--rows", type=Path, default=Path("build/sweep.jsonl"), help="kept here as they are known")
    parser.add_argument("--out", type=Path, help="the table, as Markdown")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one model")
    parser.add_argument("--total", type=float, default=3600, help="seconds after which no other model is begun")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    every = subjects()
    names = TWELVE if given.twelve else tuple(given.names) or tuple(subject.name for subject in every)
    known = {subject.name: subject for subject in every}
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such model: {', '.join(unknown)}")
    entries = sweep(
        [known[name] for name in names],
        given.rows,
        limit=given.limit,
        total=given.total,
        processes=given.processes,
        asked=given.ask,
    )
    if given.out:
        given.out.write_text(table(entries))
    wrong = faults(entries)
    print("\n".join(wrong) or f"nothing wrong in {len(entries)} models")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
