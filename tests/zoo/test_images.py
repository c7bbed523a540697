import numpy as np
import pytest
import torch
from PIL import Image

from torch_featviz.errors import FileError, OptionError
from torch_featviz.zoo import from_pil, read_image


@pytest.fixture
def pixels():
    return np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 14


def test_bytes_become_unit_range(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    want = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    assert torch.equal(read_image(tmp_path / "a.png"), want)
    assert read_image(str(tmp_path / "a.png"), "L").shape == (1, 2, 3)


def test_exif_orientation_is_respected(tmp_path, pixels):
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "a.png", exif=exif)
    want = torch.from_numpy(pixels).permute(2, 0, 1).rot90(-1, (1, 2)) / 255
    assert torch.equal(read_image(tmp_path / "a.png"), want)


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


def test_files_that_are_no_images(tmp_path, pixels):
    with pytest.raises(FileError, match="no image file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(FileError, match="cannot read image"):
        read_image(tmp_path)
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(FileError, match="is not an image that Pillow can read"):
        read_image(tmp_path / "a.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:5000])
    with pytest.raises(FileError, match="cannot read image"):
        read_image(tmp_path / "b.png")


def test_other_modes():
    with pytest.raises(OptionError, match="mode must be 'L' or 'RGB', got 'HSV'"):
        from_pil(Image.new("L", (2, 2)), "HSV")
