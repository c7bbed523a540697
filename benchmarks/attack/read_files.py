"""What reads files of runs, checkpoints, scans, weights and images, each as a function of bytes, for `parsers.py`."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import torch_featviz as fv
from torch_featviz.atlas import learning
from torch_featviz.atlas.pack import Blobs
from torch_featviz.choices import FIGURES
from torch_featviz.demo import _curves
from torch_featviz.demo.made import Made
from torch_featviz.survey import top_patches
from torch_featviz.survey.resume import State
from torch_featviz.training import History, Monitor, Sample
from torch_featviz.training.findings import Findings, read_findings
from torch_featviz.training.history import read_lines
from torch_featviz.training.run_folder import folder_of, picture_file
from torch_featviz.training.sinks import Record
from torch_featviz.training.sinks.folder import FolderSink
from torch_featviz.training.state import read_state
from torch_featviz.zoo import ImageFiles, ModelCard, read_image
from torch_featviz.zoo.weights import put_state
from torch_featviz.zoo.weights import read_state as read_weights

sys.path.insert(0, str(Path(__file__).parent))
from script import Script

Reader = Callable[[bytes], None]


class _Dot:
    """A picture of one pixel."""

    def png(self) -> bytes:
        """Its file."""
        return b"\x89PNG"


DOT: Any = _Dot()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2))


def trained(to: Path | None = None) -> Monitor:
    """A monitor that has watched a few steps of a training, one of which was broken."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Monitor(model, every=1, bins=4, noise=True, probe=torch.ones(1, 1, 6, 6), to=to) as watch:
            for number in range(4):
                with watch.step() as step:
                    loss = model(torch.rand(2, 1, 6, 6)).square().mean() * (1e38 if number == 3 else 1)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    step.log(loss=loss, odd=float("inf"))
    return watch


@contextmanager
def fresh(kept: Path) -> Iterator[Path]:
    """A copy of a folder, for one reading."""
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        yield Path(shutil.copytree(kept, Path(folder) / "run", symlinks=True))


def lines_of(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / FIGURES).read_text().splitlines()]


def damaged(script: Script, good: list[Any]) -> bytes:
    """The lines of a history: spoilt, torn, or anything."""
    kind = script.byte() % 4
    if kind == 3:
        return script.rest()
    plain = good if kind else script.spoilt(good)
    plain = plain if isinstance(plain, list) else [plain]
    if kind == 1:  # one line alone, so that all changes go there
        number = script.below(len(plain))
        plain = [*plain[:number], script.spoilt(plain[number]), *plain[number + 1 :]]
    written = "".join(json.dumps(line) + "\n" for line in plain).encode()
    return script.torn(written) if kind == 2 else written


def history(folder: Path) -> Reader:
    run = folder / "run"
    trained(run)
    good = lines_of(run)
    (run / FIGURES).unlink()

    def read(data: bytes) -> None:
        (run / FIGURES).write_bytes(damaged(Script(data), good))
        found = History.load(run, keep=4)
        read_findings(run)
        for name in found.scalars:
            found.values(name)
        for line in read_lines(run):
            again = Sample.from_dict(json.loads(json.dumps(line.sample.as_dict(), allow_nan=False)))
            assert repr(again.as_dict()) == repr(line.sample.as_dict()), "written again, it is another sample"
        for name in [*found[-1].layers, *found[-1].parameters] if len(found) else ():
            for figure in ("std", "grad_norm"):
                with suppress(fv.errors.OptionError):
                    found.line(name, figure)

    return read


def run(folder: Path) -> Reader:
    """An existing run folder is gone on with, as a user's next process does."""
    kept, model = folder / "kept", net()
    watch = trained(kept)
    good = lines_of(kept)
    images, seen = torch.ones(1, 1, 6, 6), dict[str, str]()

    def read(data: bytes) -> None:
        script = Script(data)
        kind = script.byte() % 4
        with fresh(kept) as run:
            if kind == 0:
                name(script.rest().decode("utf-8", "surrogateescape"), run)
                return
            if kind == 1:
                moved(script, run)
            if kind != 2 and (run / FIGURES).is_file():
                (run / FIGURES).write_bytes(damaged(script, good))
            if kind == 2:
                record = spoilt_record(script, watch.history[-1])
                FolderSink(run).write(record)
            else:
                with Monitor(model, every=1, bins=4, to=run) as again, again.step():
                    model(images)
            list(read_lines(run))

    def name(layer: str, run: Path) -> None:
        place = folder_of(layer)
        assert Path(place).name == place, "no name of a folder"
        assert len(place) < 200, "too long for a file system"
        assert seen.setdefault(place.lower(), layer) == layer, "two layers share a folder"
        assert picture_file(run, layer, 1).is_relative_to(run)

    return read


def spoilt_record(script: Script, sample: Sample) -> Record:
    """A step of any number, with pictures of any name."""
    names = [script.text() for _ in range(script.byte() % 3)]
    return Record(replace(sample, step=script.below(2**63)), (), dict.fromkeys(names, DOT))


def moved(script: Script, run: Path) -> None:
    """Files and folders stand elsewhere, or links do."""
    for _ in range(1 + script.byte() % 3):
        other = script.pick(sorted(run.rglob("*")))
        aside = run / script.pick(["kernels", "maps", "kernels/0", ".x.tmp", "maps/%2e%2e", "kernels/(model)", FIGURES])
        if aside == other or aside in other.parents or other in aside.parents:
            continue
        with suppress(OSError):  # a part of the way is a file, or a link that leads nowhere
            if os.path.lexists(aside):
                shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink()
            aside.parent.mkdir(exist_ok=True, parents=True)
            other.rename(aside) if script.byte() % 2 else aside.symlink_to(other)


def report(folder: Path) -> Reader:
    """A run folder as the atlas draws it, the report of `featviz report` among that: of two steps of one layer."""
    kept = folder / "kept"
    trained(kept)
    good = [
        {**line, "layers": {"3": line["layers"]["3"]}, "inputs": {}, "pictures": []} for line in lines_of(kept)[-2:]
    ]
    for line in good:
        line["parameters"] = {"3.weight": line["parameters"]["3.weight"]}
        line["scalars"] = {"loss": line["scalars"]["loss"]}

    def read(data: bytes) -> None:
        changed = Script(data).spoilt(good)
        changed = changed if isinstance(changed, list) else [changed]
        (kept / FIGURES).write_text("".join(json.dumps(line) + "\n" for line in changed))
        learning.put_learning(Blobs(), kept, 1e6)

    return read


def state(folder: Path) -> Reader:
    good, file = json.loads(json.dumps(trained().state_dict())), folder / "state.json"
    model = net()
    images = torch.ones(2, 1, 6, 6)
    watch = Monitor(model, every=1, bins=4, noise=True)

    def read(data: bytes) -> None:
        script = Script(data)
        kind = script.byte() % 4
        if kind == 3:
            written = script.rest()
        elif kind == 2:
            written = script.torn(json.dumps(good).encode())
        else:
            written = json.dumps(script.spoilt(good)).encode()
        file.write_bytes(written)
        taken = read_state(file)
        watch.load_state_dict(taken)
        str(watch.noise_scale), watch.findings, watch.history.steps
        json.dumps(watch.state_dict(), allow_nan=False)
        if kind == 1:  # and it goes on
            with watch.step():
                model(images).mean().backward()
            model.zero_grad()

    return read


def plain(_: Path) -> Reader:
    """What a checkpoint of a user's holds, as values: of Python and of torch, not only of JSON."""
    watch = trained()
    good, samples = watch.state_dict(), [sample.as_dict() for sample in watch.history]
    odd = (torch.tensor(1), torch.tensor([1.0]), np.float64(1), np.int64(1), b"x", 1j, {1: 2}, (1,), object, range(3))

    def read(data: bytes) -> None:
        script = Script(data)
        kind = script.byte() % 3
        other = lambda _, more: more.pick(odd)
        if kind == 0:
            Sample.from_dict(script.spoilt(script.pick(samples), other))
        elif kind == 1:
            findings = Findings()
            findings.load_state_dict(script.spoilt(good["findings"], other))
            for sample in watch.history:
                findings.look(sample)
        else:
            watch.load_state_dict(script.spoilt(good, other))

    return read


def resume(folder: Path) -> Reader:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2))
    loaders = [DataLoader(TensorDataset(torch.rand(6, 1, 6, 6)), batch_size=2), list(torch.rand(6, 1, 6, 6).split(2))]
    kept = []
    for number, loader in enumerate(loaders):
        file = folder / f"{number}.pt"
        top_patches(model, loader, ["0", "2"], k=4, resume=file)
        kept.append((file.read_bytes(), torch.load(file, weights_only=True)))
    file = folder / "resume.pt"

    def read(data: bytes) -> None:
        script = Script(data)
        kind = script.byte()
        written, content = kept[kind % 2]
        if (kind >> 1) % 4 == 0:
            file.write_bytes(script.torn(written))
        elif (kind >> 1) % 4 == 1:
            file.write_bytes(script.rest())
        else:
            changed = script.spoilt(content, tensor)
            if (kind >> 1) % 4 == 3:  # with a checksum that fits
                try:
                    changed = {**changed, "checksum": State(**changed["state"]).checksum()}
                except Exception:
                    return
            try:
                torch.save(changed, file)
            except Exception:  # no file holds it
                return
        best = top_patches(model, loaders[kind % 2], ["0", "2"], k=4, resume=file)
        for name in best:
            str(best[name]), best[name].patches([0])

    return read


def tensor(value: Any, script: Script) -> Any:
    """Another tensor than this: one number, its type, its shape, its layout, or where its values are."""
    if not isinstance(value, torch.Tensor) or value.numel() > 10**6:  # one number that says it is as many
        return script.pick((torch.zeros(()), torch.zeros(4, 3), torch.tensor(10), torch.zeros(0), torch.zeros(2, 2)))
    kind = script.byte() % 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if kind <= 2 and value.numel():
                copy = value.clone()
                copy.view(-1)[script.below(copy.numel())] = script.real() if kind == 2 else script.whole() >> 56
                return copy
            if kind == 3:
                return value.to(script.pick(DTYPES))
            if kind == 4:
                return value.reshape(script.pick(((-1,), (1, -1), (-1, 1), (1, *value.shape))))
            if kind == 5:
                return script.pick(LAYOUTS)(value)
            if kind == 6:
                return torch.zeros(1, dtype=value.dtype).expand(script.pick(((4, 10**12), (10**6, 10**6), (3,), (0,))))
            if kind == 7:
                return torch.empty(value.shape, dtype=value.dtype, device="meta")
            if kind == 8:
                return nn.Parameter(value) if value.is_floating_point() else value.bool()
            return value[..., :0] if value.dim() else value[None]
        except (RuntimeError, TypeError, IndexError, OverflowError):  # torch has no such tensor
            return value


DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64, torch.uint64, torch.bool),
    *(torch.complex64, torch.complex128, torch.complex32),
)
LAYOUTS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    *(torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_mkldnn, torch.Tensor.contiguous),
    lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    lambda x: torch.nested.nested_tensor([x.float(), x.float()]),
    *(torch.Tensor.t, torch.Tensor.conj),
)


def weights(folder: Path) -> Reader:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    good = model.state_dict()
    forms = (
        dict(good),
        {"state_dict": dict(good), "epoch": 3},
        {f"module._orig_mod.{k}": v for k, v in good.items()},
        {"model": {f"net.{k}": v for k, v in good.items()}, "ema": dict(good)},
    )
    file = folder / "net.pt"
    torch.save(good, file)
    whole = file.read_bytes()
    torch.save(good, file, _use_new_zipfile_serialization=False)
    old = file.read_bytes()

    def read(data: bytes) -> None:
        script = Script(data)
        kind, key = script.byte(), script.pick((None, None, "state_dict", "ema", ""))
        if kind % 4 == 3:
            file.write_bytes(script.rest())
        elif kind % 4 == 2:
            file.write_bytes(script.torn(whole if kind & 4 else old))
        else:
            changed = script.spoilt(script.pick(forms), tensor)
            try:
                torch.save(changed, file, _use_new_zipfile_serialization=bool(kind & 4))
            except Exception:  # no file holds it
                return
        put_state(model, read_weights(file, key), "net")

    return read


def safetensors(folder: Path) -> Reader:
    """The header is JSON, with the length in front: it is changed as JSON, and the length fits again."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2))
    from safetensors.torch import save  # noqa: PLC0415

    whole = save(dict(model.state_dict()), {"format": "pt"})
    length = struct.unpack("<Q", whole[:8])[0]
    header, values = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    names = ("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E5M2", "C64", "x")
    file = folder / "net.safetensors"

    def read(data: bytes) -> None:
        script = Script(data)
        kind = script.byte() % 4
        if kind == 3:
            file.write_bytes(script.rest())
        elif kind == 2:
            file.write_bytes(script.torn(whole))
        else:
            changed = script.spoilt(header, lambda _, more: more.pick(names))
            written = json.dumps(changed).encode()
            file.write_bytes(struct.pack("<Q", len(written)) + written + (script.torn(values) if kind else values))
        put_state(model, read_weights(file, script.pick((None, "0"))), "net")

    return read


def pictures() -> list[bytes]:
    """A file of each kind and mode that Pillow writes anywhere."""
    kinds = {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "F", "CMYK", "YCbCr", "LAB"),
        "GIF": ("L", "P"),
        "BMP": ("1", "L", "P", "RGB", "RGBA"),
        "PPM": ("1", "L", "RGB", "I"),
        "TGA": ("L", "P", "RGB", "RGBA"),
        "ICO": ("RGBA",),
        "JPEG": ("L", "RGB", "CMYK"),
        "WEBP": ("RGB", "RGBA"),
    }
    ramp, files = Image.linear_gradient("L").resize((5, 4)), []
    for kind, modes in kinds.items():
        for mode in modes:
            image = Image.new(mode, (5, 4)) if mode in ("LAB", "I;16") else ramp.convert(mode)
            file = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112] = 6
            image.save(file, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
            files.append(file.getvalue())
    return files


def sound(data: bytes) -> bytes:
    """A PNG file whose checksums fit its chunks."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    found, at = data[:8], 8
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        body = data[at + 4 : at + 8 + length]
        found += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return found + data[at:]


def images(folder: Path) -> Reader:
    files, place = pictures(), folder / "images"
    place.mkdir()
    grey = ModelCard("grey", net, (1, 6, 6), resize=8)
    colour = ModelCard("colour", net, (3, 6, 6))
    ends = ("a.png", "b.tif", "c.eps", ".hidden.png", "d.PNG")

    def read(data: bytes) -> None:
        script = Script(data)
        kind = script.byte()
        written = script.torn(script.pick(files)) if kind % 4 else script.rest()
        file = place / script.pick(ends)
        file.write_bytes(sound(written) if kind & 4 else written)
        failed: Exception | None = None
        few = mock.patch.object(Image, "MAX_IMAGE_PIXELS", 2**20)  # by default more, and an image takes seconds
        try:
            with few:
                for mode in ("RGB", "L"):
                    image = read_image(file, mode)
                    assert image.shape[0] == len(mode)
                    assert 0 <= image.min() <= image.max() <= 1
                for each in (grey, colour):
                    assert tuple(each.preprocess(file).shape[1:]) == each.input_size
                len(ImageFiles(place, colour.preprocess)[0])
        except fv.FeatvizError as error:
            failed = error
        finally:
            file.unlink()
        if failed is not None:
            raise failed

    return read


def frame(folder: Path) -> Reader:
    """A picture in a run folder, as the atlas reads it."""
    file, some = io.BytesIO(), folder / "step-00000001.png"
    Image.linear_gradient("L").resize((5, 4)).convert("RGB").save(file, "PNG")
    good = file.getvalue()

    def read(data: bytes) -> None:
        script = Script(data)
        written = script.torn(good)
        if script.byte() % 2:  # something stands before the header of the picture
            body = script.text().encode(errors="surrogateescape")
            chunk = struct.pack(">I", len(body)) + script.pick((b"tEXt", b"zTXt", b"eXIf", b"iCCP", b"abCD")) + body
            written = written[:8] + chunk + b"0000" + written[8:]
        some.write_bytes(sound(written))
        assert learning._pixels(some).shape[0] == 3

    return read


def demo(folder: Path) -> Reader:
    """What an earlier `featviz demo` left: its record, and the curves of its training."""
    record, curves = folder / "made.json", folder / "net.json"
    good = {"state": "s", "accuracy": 0.98, "files": {"kernels.png": "0" * 64}}
    figures = {name: [1.5, 0.5] for name in fv.zoo.TrainingCurves.__dataclass_fields__}

    def read(data: bytes) -> None:
        script = Script(data)
        kind = script.byte()
        whole = figures if kind & 4 else good
        if kind % 4 == 3:
            written = script.rest()
        elif kind % 4 == 2:
            written = script.torn(json.dumps(whole).encode())
        else:
            written = json.dumps(script.spoilt(whole)).encode()
        if kind & 4:
            curves.write_bytes(written)
            found = _curves(curves)
            repr(found), str(found), found._repr_html_()
        else:
            record.write_bytes(written)
            made = Made(record, "s")
            assert made.accuracy is None or not made.accuracy > 1
            made.same(record)
            made.keep(0.5)

    return read
