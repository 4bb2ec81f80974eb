"""Pictures in: every kind becomes upright RGB of 8 bits, or one line that says why not."""

from __future__ import annotations

import io
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cliploc.errors import InputError, UsageError
from cliploc.images import MAX_PIXELS, load

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def corners(width=16, height=12):
    """A black picture whose top left quarter is red and top right quarter blue: no two orientations look alike."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, BLUE
    return Image.fromarray(pixels)


STORED = {  # what a camera stores for an upright picture, by EXIF orientation
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = corners(64, 48)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    STORED[orientation](upright).save(path, exif=exif, **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))
    found = load(path).image
    assert found.size == (64, 48)
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(upright).astype(int))
    assert difference.mean() < (3 if suffix == "jpg" else 1e-9)


def test_orientation_of_a_picture_from_memory_and_the_picture_stays_as_it_is():
    stored = STORED[6](corners())
    stored.getexif()[0x0112] = 6
    before = stored.copy()
    np.testing.assert_array_equal(np.asarray(load(stored).image), np.asarray(corners()))
    np.testing.assert_array_equal(np.asarray(stored), np.asarray(before))
    assert stored.getexif()[0x0112] == 6


def test_the_result_shares_nothing_with_the_picture_handed_in():
    mine = corners()
    found = load(mine).image
    mine.paste(WHITE, (0, 0, 16, 12))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(corners()))


def test_cmyk_is_converted(tmp_path):
    corners(64, 48).convert("CMYK").save(tmp_path / "print.jpg", quality=95, subsampling=0)
    found = load(tmp_path / "print.jpg").image
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found).astype(int) - np.asarray(corners(64, 48)).astype(int)).mean() < 4


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("top", [200, 65535], ids=["dark", "full range"])
def test_16_bit_greys_are_scaled_not_clipped(tmp_path, suffix, top):
    grey = np.linspace(0, top, 12 * 16).reshape(12, 16).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / f"scan.{suffix}")
    found = np.asarray(load(tmp_path / f"scan.{suffix}").image)
    expected = np.round(grey / 257).astype(int)
    assert (np.abs(found.astype(int) - expected[..., None]) <= 1).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0.25, 1], [0, 64, 255]), ([0, 100, 255], [0, 100, 255]), ([0, 32768, 65535], [0, 128, 255])],
    ids=["0 to 1", "8 bits", "16 bits"],
)
def test_float_tiffs_of_any_range(tmp_path, values, expected):
    Image.fromarray(np.repeat(np.float32(values), 40).reshape(3, 40).repeat(3, axis=0)).save(tmp_path / "float.tif")
    found = np.asarray(load(tmp_path / "float.tif").image)
    assert found[::3, 0, 0].tolist() == expected


def test_missing_values_of_a_float_tiff_are_black_and_do_not_spoil_the_rest(tmp_path):
    values = np.full((10, 10), 0.5, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / "float.tif")
    found = np.asarray(load(tmp_path / "float.tif").image)
    assert found[0, :4, 0].tolist() == [0, 0, 0, 128]


def transparent(mode):
    """Red on the left, and on the right a blue that is fully transparent."""
    if mode == "RGBA":
        image = Image.new("RGBA", (16, 12), (*RED, 255))
        image.paste((*BLUE, 0), (8, 0, 16, 12))
    elif mode == "LA":
        image = Image.new("LA", (16, 12), (90, 255))
        image.paste((10, 0), (8, 0, 16, 12))
    elif mode == "P":
        image = Image.new("P", (16, 12), 0)
        image.putpalette([*RED, *BLUE])
        image.paste(1, (8, 0, 16, 12))
        image.info["transparency"] = 1
    else:
        image = Image.new("RGB", (16, 12), RED)
        image.paste(BLUE, (8, 0, 16, 12))
        image.info["transparency"] = BLUE
    return image


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGBA", "png"), ("RGBA", "webp"), ("LA", "png"), ("P", "png"), ("P", "gif"), ("RGB", "png")]
)
def test_transparency_is_laid_on_white(tmp_path, mode, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    image = transparent(mode)
    if "transparency" in image.info:
        options["transparency"] = image.info["transparency"]
    image.save(tmp_path / f"logo.{suffix}", **options)
    for found in (load(tmp_path / f"logo.{suffix}").image, load(image).image):
        assert found.mode == "RGB"
        assert found.getpixel((2, 5)) == ((90, 90, 90) if mode == "LA" else RED)
        assert found.getpixel((12, 5)) == WHITE


def test_half_transparent_is_mixed_with_white():
    found = load(Image.new("RGBA", (9, 9), (255, 0, 0, 51))).image.getpixel((0, 0))
    assert found == pytest.approx((255, 204, 204), abs=1)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_used_and_a_note_says_so(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 12), colour) for colour in (RED, BLUE, WHITE)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    picture = load(tmp_path / f"a.{suffix}")
    assert picture.image.getpixel((3, 3)) == RED
    assert picture.notes == ("animated, 3 frames: the first is used",)
    assert load(corners()).notes == ()


def test_pages_of_a_tiff_are_not_called_an_animation(tmp_path):
    pages = [Image.new("RGB", (16, 12), colour) for colour in (RED, BLUE)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    picture = load(tmp_path / "scan.tif")
    assert picture.image.getpixel((3, 3)) == RED
    assert picture.notes == ("holds 2 pictures: the first is used",)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "LAB", "CMYK", "La", "RGBa", "PA", "I", "F", "I;16", "I;16B"]
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_mode_of_pillow_becomes_rgb(mode, orientation):
    image = Image.new(mode, (16, 12))
    image.getexif()[0x0112] = orientation
    found = load(image).image
    assert found.mode == "RGB"
    assert found.size == ((16, 12) if orientation == 1 else (12, 16))


@pytest.mark.parametrize(
    "array",
    [
        np.asarray(corners()),
        np.asarray(corners())[:, :, ::-1][:, :, ::-1],
        np.asarray(corners()) / 255.0,
        (np.asarray(corners()) / 255.0).astype(np.float32),
        (np.asarray(corners()) / 255.0).astype(np.float16),
        np.asarray(corners().convert("RGBA")),
        np.asarray(corners().convert("RGBA")) / 255.0,
        np.asfortranarray(np.asarray(corners())),
    ],
    ids=["uint8", "negative strides", "float64", "float32", "float16", "RGBA", "float RGBA", "Fortran order"],
)
def test_arrays(array):
    picture = load(array, "frame 7")
    np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(corners()))
    assert picture.source == "frame 7"


def test_grey_arrays():
    grey = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
    for array in (grey, grey / 255.0):
        np.testing.assert_array_equal(np.asarray(load(array).image), np.repeat(grey[..., None], 3, axis=2))


def test_floats_are_rounded_to_the_nearest_grey():
    assert load(np.full((9, 9), 0.999)).image.getpixel((0, 0)) == WHITE


def test_transparent_arrays_are_laid_on_white():
    assert load(np.zeros((9, 9, 4), np.uint8)).image.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((9, 9), bool), "image: expected an array of uint8 or floats in 0–1, got bool"),
        (np.zeros((9, 9, 3), np.int64), "image: expected an array of uint8 or floats in 0–1, got int64"),
        (np.zeros((9, 9, 2), np.uint8), "image: expected an array [H, W], [H, W, 3] or [H, W, 4], got [9, 9, 2]"),
        (np.zeros((3, 9, 9), np.uint8), "image: expected an array [H, W], [H, W, 3] or [H, W, 4], got [3, 9, 9]"),
        (np.zeros(9, np.uint8), "image: expected an array [H, W], [H, W, 3] or [H, W, 4], got [9]"),
        (np.full((9, 9), 1.5), "image: expected floats in 0–1, got values outside: divide 8-bit values by 255"),
        (np.full((9, 9), -0.1), "image: expected floats in 0–1, got values outside: divide 8-bit values by 255"),
        (np.full((9, 9), np.nan), "image: expected floats in 0–1, got values outside: divide 8-bit values by 255"),
        (np.zeros((0, 9, 3), np.uint8), "image: 9×0 pixels, expected at least 8×8: use a larger picture"),
        (np.zeros((1, 1), np.uint8), "image: 1×1 pixels, expected at least 8×8: use a larger picture"),
    ],
)
def test_arrays_that_are_refused(array, text):
    with pytest.raises(InputError) as error:
        load(array)
    assert str(error.value) == text


@pytest.mark.parametrize("thing", [None, 7, b"bytes", [1, 2]])
def test_other_things_are_a_usage_error(thing):
    with pytest.raises(UsageError, match=f"expected a path, a PIL image or a numpy array, got {type(thing).__name__}"):
        load(thing)


def truncated_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()[: buffer.tell() // 2]


def png_that_claims(width, height):
    """A valid header, and a few bytes where 400 million pixels should be."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("empty.jpg", b"", "the file is empty (0 bytes): fetch it again"),
        ("text.jpg", b"this is no picture", "not a picture that can be read: expected JPEG, PNG, WebP or the like"),
        ("cut.jpg", truncated_jpeg(), "damaged (image file is truncated"),
        ("bomb.png", png_that_claims(20_000, 20_000), "more than 178 million pixels, expected at most 120 million"),
        ("large.png", png_that_claims(12_000, 12_000), "12000×12000 pixels, expected at most 120 million"),
        ("line.png", png_that_claims(20_000, 3), "20000×3 pixels, expected at least 8×8: use a larger picture"),
        ("short.png", png_that_claims(90, 90), "damaged ("),
    ],
)
def test_files_that_are_refused(tmp_path, name, data, text):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as error:
        load(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: {text}"), error.value
    assert "\n" not in str(error.value)


def test_the_limit_is_at_the_number_of_pixels():
    class Huge(Image.Image):  # a size without the memory
        size = (MAX_PIXELS // 10_000 + 1, 10_000)

    with pytest.raises(InputError, match="expected at most 120 million: make it smaller first"):
        load(Huge(), "huge")


def test_paths_that_are_no_files(tmp_path):
    for path, text in [
        (tmp_path / "none.jpg", f"{tmp_path}/none.jpg: no such file: check the path"),
        (str(tmp_path), f"{tmp_path}: is a folder, expected a picture: name its files, such as {tmp_path}/*.jpg"),
        ("a\0b.jpg", "a\0b.jpg: no such file: check the path"),
        ("x" * 5000, "x" * 5000 + ": no such file: check the path"),
        ("", "expected a picture's path, got an empty one: check the path"),
        ("/dev/zero", "/dev/zero: is a device or a pipe, expected a picture file: save the picture first"),
    ]:
        with pytest.raises(InputError) as error:
            load(path)
        assert str(error.value) == text


def encoded(format_, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(buffer, format_, **options, **({} if format_ in ("GIF", "BMP", "PPM") else {"exif": exif}))
    return buffer.getvalue()


SOUND = [encoded(format_) for format_ in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM")]


@settings(max_examples=400)
@given(st.sampled_from(SOUND), st.data())
def test_damage_anywhere_is_an_input_error_or_still_a_picture(sound, data):
    """Never a traceback: bytes overwritten, mostly in the header, and the end cut off."""
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.one_of(st.integers(0, 120), st.integers(0, len(sound) - 1)))
        damaged[place] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.integers(1, len(sound)))] if data.draw(st.booleans()) else damaged
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.bin"
        path.write_bytes(damaged)
        refusal, picture = None, None
        try:
            picture = load(path)
        except InputError as error:
            refusal = str(error)
    if picture is None:
        assert refusal.startswith(f"{path}: ")
        assert "\n" not in refusal
    else:
        assert picture.image.mode == "RGB"
        assert np.asarray(picture.image).shape[2] == 3
