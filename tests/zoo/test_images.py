import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from torch_featviz.errors import DtypeError, FeatvizError, FeatvizWarning, FileError, OptionError, ShapeError
from torch_featviz.zoo import ImageFiles, ModelCard, from_pil, read_image


@pytest.fixture
def pixels():
    return np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14


def test_bytes_become_unit_range(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    want = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    assert torch.equal(read_image(tmp_path / "a.png"), want)
    assert read_image(str(tmp_path / "a.png"), "L").shape == (1, 2, 3)


TURNS = {  # what the EXIF standard says that each orientation needs, for `h w c`
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_exif_orientation_is_respected(tmp_path, orientation, kind):
    blocks = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    image = Image.fromarray(blocks)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{kind}", exif=exif, **({"lossless": True} if kind == "webp" else {}))
    want = torch.from_numpy(TURNS[orientation](blocks).copy()).permute(2, 0, 1) / 255
    assert torch.equal(read_image(tmp_path / f"a.{kind}"), want)


def test_transparent_is_white_paper():
    assert torch.equal(from_pil(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "L"), torch.ones(1, 2, 2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_of_pillow(mode):
    for channels, wanted in ((1, "L"), (3, "RGB")):
        image = from_pil(Image.new(mode, (4, 2)), wanted)
        assert image.shape == (channels, 2, 4)
        assert image.min() >= 0
        assert image.max() <= 1


def test_sixteen_bits_keep_their_greys():
    deep = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    torch.testing.assert_close(from_pil(deep, "L"), torch.tensor([[[0, 32768 / 65535, 1.0]]]))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, colour):
    """A PNG of 16 bits, `h w c`, by the letter of its standard."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bits_in_files(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (5, 4, 3), dtype=np.uint16)
    (tmp_path / "grey.png").write_bytes(png(values[..., 0], 0))
    want = torch.from_numpy(values[..., 0] / np.float32(65535))[None]
    torch.testing.assert_close(read_image(tmp_path / "grey.png", "L"), want)
    torch.testing.assert_close(read_image(tmp_path / "grey.png"), want.expand(3, -1, -1))
    (tmp_path / "rgb.png").write_bytes(png(values, 2))
    want = torch.from_numpy((values >> 8).astype(np.float32) / 255).permute(2, 0, 1)  # all that Pillow keeps
    assert torch.equal(read_image(tmp_path / "rgb.png"), want)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_kinds_of_files(tmp_path, mode):
    rng = np.random.default_rng(0)
    bands = {"1": 1, "L": 1, "LA": 2, "P": 1, "RGBA": 4, "CMYK": 4}[mode]
    raw = rng.integers(0, 256, (6, 8, bands), dtype=np.uint8)
    v = raw.astype(np.float64)
    grey = v[..., :1] / 255
    paper = {
        "LA": lambda: 1 + (grey - 1) * v[..., 1:] / 255,
        "RGBA": lambda: 1 + (v[..., :3] / 255 - 1) * v[..., 3:] / 255,
    }
    ink = lambda: (1 - v[..., :3] / 255) * (1 - v[..., 3:] / 255)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    want = {"1": lambda: raw > 127, "L": lambda: grey, "P": lambda: palette[raw[..., 0]] / 255, "CMYK": ink, **paper}[
        mode
    ]()
    image = Image.fromarray((raw if bands > 1 else raw[..., 0]) if mode != "1" else raw[..., 0] > 127, None)
    if mode == "CMYK":
        image = Image.frombytes("CMYK", (8, 6), raw.tobytes())
    if mode == "P":
        image.putpalette(palette.tobytes())
    assert image.mode == mode
    name = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    image.save(name)
    want = torch.from_numpy(np.broadcast_to(want, (6, 8, 3)).astype(np.float32)).permute(2, 0, 1)
    torch.testing.assert_close(read_image(name), want, rtol=0, atol=1 / 255)  # Pillow mixes whole bytes


def test_a_palette_with_a_hole(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png").tolist() == [[[1, 0]], [[1, 0]], [[1, 1]]]  # white paper, blue


def test_a_huge_file_takes_little_memory(tmp_path, forks):
    Image.new("RGB", (8000, 8000), (10, 200, 30)).save(tmp_path / "a.png", compress_level=1)
    code = """if True:
        import resource, sys
        from torch import nn
        from torch_featviz.zoo import ImageFiles, ModelCard
        card = ModelCard("a", nn.Identity, (3, 224, 224), resize=256)
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        before = peak()
        image = ImageFiles(sys.argv[1], card.preprocess)[0]
        print(peak() - before, *image.mean((1, 2)).mul(255).round().int().tolist())
    """
    done = forks.run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    megabytes, *colour = map(int, done.stdout.split())
    assert colour == [10, 200, 30]
    assert megabytes < 400  # 256 of them are Pillow's own, and as floats it would be 768


def test_one_pixel_and_a_strip(tmp_path):
    Image.new("RGB", (1, 1), (51, 102, 153)).save(tmp_path / "a.png")
    Image.new("L", (8000, 1), 51).save(tmp_path / "b.png")
    known = ModelCard("a", nn.Identity, (3, 24, 24), resize=32)
    want = torch.tensor([0.2, 0.4, 0.6])[:, None, None].expand(1, 3, 24, 24)
    torch.testing.assert_close(known.preprocess(tmp_path / "a.png"), want)
    with pytest.raises(ShapeError, match=r"b\.png': an image of 1×8000 is too thin to cut 24×24 from; crop it first"):
        known.preprocess(tmp_path / "b.png")
    squeezed = ModelCard("a", nn.Identity, (3, 24, 24)).preprocess(tmp_path / "b.png")
    torch.testing.assert_close(squeezed, torch.full((1, 3, 24, 24), 0.2))


def test_files_that_are_no_images(tmp_path):
    with pytest.raises(FileError, match="no image file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(FileError, match=r"cannot read image .*: Is a directory"):
        read_image(tmp_path)
    for nothing in (b"", b"hello"):
        (tmp_path / "a.png").write_bytes(nothing)
        with pytest.raises(FileError, match="is not an image that is read here"):
            read_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_broken_files(tmp_path, kind, harm):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{kind}"
    Image.fromarray(noise).save(path)
    data = bytearray(path.read_bytes())
    for place in range(10, len(data), 7):
        if harm == "flipped":
            data[place] ^= 255
    path.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    with pytest.raises(FileError, match=r"(cannot read image '.*a\.|a\..*' is not an image that is read here)") as told:
        read_image(path)
    assert len(str(told.value).splitlines()) == 1


def test_a_bad_file_in_a_folder_is_named(tmp_path):
    for i in range(3):
        Image.new("L", (9, 9)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    files = ImageFiles(tmp_path, ModelCard("a", nn.Identity, (1, 4, 4)).preprocess)
    assert [path.name for path in files.paths] == ["0.png", "1.png", "2.png"]
    assert files[2].shape == (1, 4, 4)
    with pytest.raises(FileError, match=r"1\.png' is not an image"):
        files[1]


def test_stray_files_of_a_folder_are_left_out_with_one_warning(tmp_path):
    (tmp_path / "deep" / ".thumbnails").mkdir(parents=True)
    for name in ("b.png", "deep/a.JPG", "._b.png", "deep/.thumbnails/a.png"):
        Image.new("L", (9, 9)).save(tmp_path / name)
    Image.new("L", (9, 9)).save(tmp_path / "c.eps")
    (tmp_path / "d.png").touch()
    (tmp_path / "e.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "f.png")
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        (tmp_path / name).write_bytes(b"no image by its name")
    with pytest.warns(FeatvizWarning, match=r"6 left out: '\._b\.png' \(hidden\), .* \(.*\), .*, \.\.\.$") as told:
        files = ImageFiles(tmp_path, ModelCard("a", nn.Identity, (1, 4, 4)).preprocess)
    assert len(told) == 1
    assert [path.relative_to(tmp_path).as_posix() for path in files.paths] == ["b.png", "deep/a.JPG"]
    assert {path.name: why for path, why in files.left_out.items()} == {
        "._b.png": "hidden",
        "a.png": "hidden",
        "c.eps": "EPS is not read",
        "d.png": "empty",
        "e.png": "No such file or directory",
        "f.png": "no file",
    }
    for name in ("b.png", "deep/a.JPG"):
        (tmp_path / name).unlink()
    with pytest.raises(FileError, match=r"has no images: '\._b\.png' \(hidden\), .*; choose a folder with"):
        ImageFiles(tmp_path, ModelCard("a", nn.Identity, (1, 4, 4)).preprocess)


def test_postscript_is_not_run(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(FileError, match=r"a\.png' is not an image that is read here \(PNG, JPEG, "):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("limit", "match"), [(50, r"has 9×9 pixels, and at most 50 are"), (40, "has 81 pixels, and at")]
)
def test_a_budget_of_pixels(tmp_path, monkeypatch, limit, match):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(FileError, match=match):
        read_image(tmp_path / "a.png")
    for allowed in (81, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", allowed)
        assert read_image(tmp_path / "a.png").shape == (3, 9, 9)


def test_floats_are_taken_as_they_are_and_never_clipped(tmp_path):
    values = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    values[0, :2] = 0, 1
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert torch.equal(read_image(tmp_path / "a.tiff", "L"), torch.from_numpy(values)[None])
    Image.fromarray(values * 255).save(tmp_path / "a.tiff")
    with pytest.raises(OptionError, match=r"a\.tiff': image must lie in \[0, 1\], got 0 to 255; divide bytes by 255"):
        read_image(tmp_path / "a.tiff")
    with pytest.raises(OptionError, match=r"image must lie in \[0, 1\], got -0\.5 to"):
        from_pil(Image.fromarray(values - 0.5))


def test_integers_of_32_bits_have_no_range(tmp_path):
    whole = Image.fromarray(np.array([[0, 255], [70, 9]], dtype=np.int32))
    whole.save(tmp_path / "a.tiff")
    with pytest.raises(OptionError, match=r"a\.tiff': an image of 32-bit integers has no known range, got 0 to 255;"):
        read_image(tmp_path / "a.tiff")
    with pytest.raises(OptionError, match="has no known range"):
        ModelCard("a", nn.Identity, (3, 2, 2)).preprocess(whole)
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 1000\n" + np.array([0, 500, 1000], dtype=">u2").tobytes())
    want = torch.tensor([[[0, 0.5, 1]]])
    torch.testing.assert_close(read_image(tmp_path / "a.pgm", "L"), want, atol=1e-5, rtol=0)


def written(kind):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 5, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


FILES = [written(kind) for kind in ("png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm", "tga", "jpeg2000")]
changes = st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(FILES) | st.binary(max_size=99), changes, st.integers(0, 60))
def test_any_bytes_as_a_file(tmp_path, monkeypatch, data, changes, cut):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # a changed head may say that it is huge
    harmed = bytearray(data)
    for place, byte in changes:
        if harmed:
            harmed[place % len(harmed)] = byte
    (tmp_path / "a").write_bytes(harmed[: len(harmed) - cut])
    try:
        image = read_image(tmp_path / "a")
    except FeatvizError as error:
        told = error
    else:
        told = None
        assert image.shape[0] == 3
        assert 0 <= image.min() <= image.max() <= 1
    assert told is None or isinstance(told, (FileError, OptionError))


def test_colours_that_need_a_profile(tmp_path):
    Image.new("LAB", (3, 2), (200, 30, 90)).save(tmp_path / "a.tiff")
    grey, colours = (read_image(tmp_path / "a.tiff", mode) for mode in ("L", "RGB"))
    luma = (colours * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    assert grey.sub(luma).abs().max() < 1 / 255
    assert grey.max() > 0.3


def test_colours_that_are_not_converted():
    with pytest.raises(OptionError, match="Pillow does not convert La to RGBA; save the image as RGB"):
        from_pil(Image.new("La", (3, 2)))
    with pytest.raises(OptionError, match="Pillow does not convert La to RGBA"):
        ModelCard("a", nn.Identity, (3, 4, 4)).preprocess(Image.new("La", (3, 2)))


def test_values_that_are_no_picture_are_told_with_the_file(tmp_path):
    Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(OptionError, match=r"a\.tiff': image must lie in \[0, 1\], got nan to nan"):
        ModelCard("a", nn.Identity, (1, 4, 4)).preprocess(tmp_path / "a.tiff")


def test_other_modes():
    with pytest.raises(OptionError, match="mode must be one of 'L', 'RGB', got 'HSV'"):
        from_pil(Image.new("L", (2, 2)), "HSV")
    with pytest.raises(DtypeError, match=r"image must be a PIL image, got Tensor; read_image\(path\) reads a file\."):
        from_pil(torch.zeros(3, 4, 4))
