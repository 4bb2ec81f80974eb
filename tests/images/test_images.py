"""Pictures in: every kind becomes upright RGB of 8 bits, or one line that says why not; the photographs we ship."""

import hashlib
import importlib.util
import io
import json
import re
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.nn import functional as F

from cliploc.errors import InputError, UsageError
from cliploc.images import reading as images
from cliploc.images.exemplars import Exemplar, exemplar_of, split_entries
from cliploc.images.reading import load, pictures_in
from cliploc.localizer import Localizer
from cliploc.support.files import demo_folder
from cliploc.web.settings import from_mapping
from tests.commands import CAT, COFFEE, check_refusal, document_of, refused, succeeded
from tests.tiny import tower

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
    [
        ([0, 0.25, 1], [0, 64, 255]),
        ([0, 100, 255], [0, 100, 255]),
        ([0, 32768, 65535], [0, 128, 255]),
        ([np.nan, 0.5, np.inf], [0, 128, 0]),  # missing values are black and do not spoil the rest
        ([-np.inf, 0.5, 1], [0, 128, 255]),
    ],
    ids=["0 to 1", "8 bits", "16 bits", "missing above", "missing below"],
)
def test_float_tiffs_of_any_range(tmp_path, values, expected):
    Image.fromarray(np.repeat(np.float32(values), 40).reshape(3, 40).repeat(3, axis=0)).save(tmp_path / "float.tif")
    found = np.asarray(load(tmp_path / "float.tif").image)
    assert found[::3, 0, 0].tolist() == expected


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


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_used_and_a_note_says_so(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 12), colour) for colour in (RED, BLUE, WHITE)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    picture = load(tmp_path / f"a.{suffix}")
    assert picture.image.getpixel((3, 3)) == RED
    assert picture.notes == ("animated: the first is used",)
    assert load(corners()).notes == ()


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


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((9, 9), bool), "got bool"),
        (np.zeros((3, 9, 9), np.uint8), "got [3, 9, 9]"),
        (np.full((9, 9), 1.5), "expected floats in 0–1"),
        (np.zeros((1, 1), np.uint8), "1×1 pixels, expected at least 8×8"),
    ],
)
def test_arrays_that_are_refused(array, text):
    with pytest.raises(InputError) as error:
        load(array)
    check_refusal(str(error.value), "image: ", text)


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


REFUSED = [
    ("empty.jpg", b"", "the file is empty (0 bytes): download it again"),
    ("text.jpg", b"this is no picture", "not a picture that can be read: expected JPEG, PNG, WebP or similar"),
    ("cut.jpg", truncated_jpeg(), "damaged (image file is truncated"),
    ("bomb.png", png_that_claims(20_000, 20_000), "more than 178 million pixels, expected at most 120 million"),
    ("large.png", png_that_claims(12_000, 12_000), "12000×12000 pixels, expected at most 120 million"),
    ("line.png", png_that_claims(20_000, 3), "20000×3 pixels, expected at least 8×8: use a larger picture"),
    ("short.png", png_that_claims(90, 90), "damaged ("),
]


def test_paths_that_are_no_files(tmp_path):
    for path, text in [
        ("https://a.b/c.jpg", "https://a.b/c.jpg: no such file: download"),
        (str(tmp_path), f"{tmp_path}: is a folder, expected a picture"),
        ("a\0b.jpg", "a\0b.jpg: no such file"),
        ("", "expected a picture's path, got an empty one"),
    ]:
        with pytest.raises(InputError) as error:
            load(path)
        check_refusal(str(error.value), text)


# ------------------------------------------------------------------------------------------- formats that are not read
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
{} loop
%%EOF
"""


def test_other_formats_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "photo.jpg"
    path.write_bytes(EPS)
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    with pytest.raises(InputError, match="not a picture that can be read: expected JPEG, PNG, WebP or similar"):
        load(path)


def test_frames_are_not_walked_through(tmp_path, monkeypatch):
    """Pillow's count takes quadratic time for the pages of a TIFF, and minutes for a GIF of a million frames."""
    frames = [Image.new("L", (16, 12), grey) for grey in range(3)]
    for name in ("a.gif", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    for reader in ("GifImagePlugin.GifImageFile", "TiffImagePlugin.TiffImageFile"):
        monkeypatch.setattr(f"PIL.{reader}.n_frames", property(lambda _: pytest.fail("all were walked through")))
    assert load(tmp_path / "a.gif").notes == ("animated: the first is used",)
    pages = load(tmp_path / "a.tif")
    assert pages.image.getpixel((3, 3)) == (0, 0, 0)
    assert pages.notes == ("holds several pictures: the first is used",)


def test_nobody_else_opens_picture_files():
    """`images.open_picture` holds the list of formats and the limits; a list of suffixes stands there alone, too."""
    root = Path(images.__file__).parents[1]
    for path in root.rglob("*.py"):
        text = path.read_text()
        if path != Path(images.__file__):
            assert "Image.open(" not in text, path
            assert '".jpeg"' not in text, path


# ---------------------------------------------------------------------------------------------------------------- HEIC
def heic_start(brand: bytes, *others: bytes) -> bytes:
    """The first box of a file in the HEIF container."""
    brands = b"".join(others)
    return (16 + len(brands)).to_bytes(4, "big") + b"ftyp" + brand + bytes(4) + brands + bytes(64)


@pytest.mark.parametrize(
    "start", [heic_start(b"heic", b"mif1"), heic_start(b"mif1", b"mif1", b"heic")], ids=["heic", "mif1"]
)
def test_without_pillow_heif_a_heic_file_names_what_to_install(
    start: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "OPEN", {key: value for key, value in Image.OPEN.items() if key != "HEIF"})
    for name in ("a.heic", "a.jpg"):  # the content counts
        path = tmp_path / name
        path.write_bytes(start)
        with pytest.raises(InputError, match=r"a HEIC picture, which needs pillow-heif: pip install 'cliploc\[heic\]'"):
            load(path)
    avif = tmp_path / "a.avif"
    avif.write_bytes(heic_start(b"mif1", b"avif"))
    with pytest.raises(InputError, match=r"not a picture that can be read|damaged"):
        load(avif)


def test_a_heic_file_is_read_upright_and_nothing_is_registered_with_pillow(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    there = dict(Image.OPEN)
    path = tmp_path / "a.heic"
    picture = Image.new("RGB", (64, 32), "blue")
    picture.paste("red", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was turned: shown, it stands upright
    pillow_heif.from_pillow(picture).save(path, quality=95, exif=exif.tobytes())
    read = load(path)
    assert read.image.size == (32, 64)
    red, _, blue = read.image.getpixel((16, 8))
    assert red > 200 > 50 > blue
    assert there == Image.OPEN
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="damaged"):
        load(path)
    pillow_heif.from_pillow(picture).save(path)
    with pytest.raises(InputError, match="expected at most"):
        load(path, max_pixels=1000)


def test_a_loaded_picture_is_taken_as_it_is_and_told_by_its_pixels() -> None:
    picture = load(np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3))
    assert load(picture) is picture
    same, turned = load(picture.image), load(picture.image.rotate(180))
    assert same.checksum == picture.checksum != turned.checksum
    plain = np.zeros((8, 16, 3), np.uint8)
    assert load(plain).checksum != load(plain.reshape(16, 8, 3)).checksum


# ----------------------------------------------------------------------------------------- photographs of the package
def test_a_photograph_of_the_package_is_named_by_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = load("demo:cat.jpg")
    assert picture.source == "demo:cat.jpg"
    assert np.array_equal(picture.image, load(demo_folder() / "cat.jpg").image)
    assert np.array_equal(load(Path("demo:cat.jpg")).image, picture.image)
    Image.new("RGB", (20, 10)).save("demo:cat.jpg", "JPEG")
    assert load("demo:cat.jpg").image.size == (20, 10), "a file of that name comes first"


@pytest.mark.parametrize("name", ["dog.jpg", "", "../demo.py", "photos.json"])
def test_an_unknown_photograph_of_the_package_lists_what_there_is(name):
    with pytest.raises(InputError, match=r"unknown demo picture .*there are astronaut\.jpg, bee\.jpg, .*wren\.jpg$"):
        load(f"demo:{name}")


@pytest.mark.parametrize(
    ("shape", "count"), [((9, 8), 1), ((9, 8, 3), 1), ((9, 8, 4), 1), ((3, 9, 8), 1), ((2, 9, 8), 2), ((2, 9, 8, 3), 2)]
)
def test_an_array_is_one_picture_or_several(shape, count):
    assert len(list(pictures_in(np.zeros(shape, np.uint8)))) == count


# ---------------------------------------------------------------------------------------------------------- demo photos
ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "src" / "cliploc" / "demo_photos"
PHOTOS = json.loads((FOLDER / "photos.json").read_text(encoding="utf-8"))
FREE = re.compile(r"CC0-1\.0|CC-BY-\d\.0|Public domain\b.*")

each_photo = pytest.mark.parametrize("photo", PHOTOS, ids=[photo["file"] for photo in PHOTOS])


@pytest.fixture(scope="module")
def collector():
    spec = importlib.util.spec_from_file_location("collect_demo_photos", ROOT / "tools" / "collect_demo_photos.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_folder_holds_the_listed_photos_and_no_other():
    listed = [photo["file"] for photo in PHOTOS]
    assert len(set(listed)) == len(listed) >= 8
    assert {path.name for path in FOLDER.glob("*.jpg")} == set(listed)
    assert sum((FOLDER / photo["file"]).stat().st_size for photo in PHOTOS) <= 3_000_000


@each_photo
def test_a_photo_is_the_listed_one_and_says_whose_it_is_and_where_it_came_from(photo):
    assert hashlib.sha256((FOLDER / photo["file"]).read_bytes()).hexdigest() == photo["sha256"]
    with Image.open(FOLDER / photo["file"]) as picture:
        picture.load()
        assert (picture.mode, picture.size) == ("RGB", (photo["width"], photo["height"]))
        # A turned picture would put the boxes elsewhere for a reader that honours EXIF.
        assert not picture.getexif()
    assert FREE.match(photo["licence"]), photo["licence"]
    for field in ("title", "author", "licence_file", "licence_statement", "origin"):
        assert photo[field].strip(), field
    source = photo["source"]
    assert re.fullmatch(r"[0-9a-f]{64}", source["archive_sha256"])
    assert source["version"].split(":")[-1] in source["archive"]


def test_the_licence_file_and_the_list_are_as_the_collector_writes_them(collector):
    assert (FOLDER / "LICENSES.md").read_text(encoding="utf-8") == collector.licences_text(PHOTOS)
    assert (FOLDER / "photos.json").read_text(encoding="utf-8") == collector.dump(PHOTOS)


@each_photo
def test_boxes_lie_in_the_picture_and_something_asked_for_is_absent(photo):
    asked, present = set(photo["ask"]), {box["name"] for box in photo["boxes"]}
    assert len(asked) == len(photo["ask"])
    assert present < asked
    for x0, y0, x1, y1 in (box["xyxy"] for box in photo["boxes"]):
        assert 0 <= x0 < x1 <= photo["width"]
        assert 0 <= y0 < y1 <= photo["height"]


# -------------------------------------- Pictures as prompts: what is typed, what is embedded, and what a run of them is
GRID = (4, 4)


def noise(seed, hw=(16, 16)):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def embedding_of(localizer, pixels):
    images = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float() / 255
    return localizer.backbone.encode_image(localizer.backbone.normalize(images))[0]


@pytest.mark.parametrize("kind", ["gap_cnn", "vit"])
def test_a_crop_stands_for_a_name(kind):
    """The embedding is the crop's, as if it were a picture; with text, each has one vote."""
    photo = noise(0, (40, 50))
    part, whole = photo[4:20, 8:24], noise(1)
    exemplars = [
        Exemplar("cup", photo, (8, 4, 24, 20)),
        Exemplar("lid", photo, (8, 4, 24, 20)),
        Exemplar("lid", whole),
        Exemplar("red", whole, with_text=True),
    ]
    localizer = Localizer(tower(kind, GRID), method="cam" if kind == "gap_cnn" else "gem", exemplars=exemplars)
    cup, lid, red, blue = localizer.embed_names(["cup", "lid", "red", "blue"])
    seen, shown = embedding_of(localizer, part), embedding_of(localizer, whole)
    plain = Localizer(localizer.backbone, method=localizer.method.name)
    torch.testing.assert_close(cup, seen)
    torch.testing.assert_close(lid, F.normalize(seen + shown, dim=0))
    torch.testing.assert_close(red, F.normalize(shown + plain.embed_names(["red"])[0], dim=0))
    assert torch.equal(blue, plain.embed_names(["blue"])[0])
    found = localizer(part, ["cup"])
    assert found.scores[0] == pytest.approx(1, abs=1e-5)


def test_a_run_is_known_by_the_pixels(tmp_path):
    """The same pixels elsewhere are the same run; other pixels under the same path are another."""
    for name, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        Image.fromarray(noise(seed)).save(tmp_path / name)
    said = [
        Localizer(tower("gap_cnn", GRID), method="cam", exemplars=[text]).describe()["exemplars"]
        for text in (*(f"cup=@{tmp_path / name}" for name in ("a.png", "b.png", "c.png")), f"cup|@{tmp_path / 'a.png'}")
    ]
    assert said[0] == said[1]
    assert len({json.dumps(one) for one in said}) == 3


def test_what_is_typed():
    assert split_entries(["cat|kitten", "dog"]) == (["cat|kitten", "dog"], [])
    assert split_entries(["@a/cup.jpg"]) == (["cup"], ["cup=@a/cup.jpg"])
    assert split_entries(["@demo:cat.jpg"]) == (["cat"], ["cat=@demo:cat.jpg"])
    assert split_entries(["cup=@photo.jpg[1,2,3,4]"]) == (["cup"], ["cup=@photo.jpg[1,2,3,4]"])
    assert split_entries(["cup| @c.jpg|mug"]) == (["cup|mug"], ["cup|@c.jpg"])
    assert split_entries(["lid=@a|@b[0,0,9,9]", "@s.png"]) == (["lid", "s"], ["lid=@a", "lid=@b[0,0,9,9]", "s=@s.png"])
    assert exemplar_of("cup|@a b.jpg") == Exemplar("cup", "a b.jpg", with_text=True)
    assert exemplar_of("cup=@photo.jpg[10 20 90 110]").box == (10.0, 20.0, 90.0, 110.0)  # as the page prints boxes
    assert exemplar_of("cup=@photo.jpg[10,20,90,110]") == Exemplar("cup", "photo.jpg", (10.0, 20.0, 90.0, 110.0))
    for wrong, line in (
        ("cup", "expected an exemplar as NAME=@FILE"),
        ("cup=@a.jpg[1,2]", r"expected a box as \[x0,y0,x1,y1\] after a.jpg"),
        ("cup=@a.jpg[5,0,5,9]", "with x0 < x1"),
        ("cup=@a.jpg[0,0,inf,9]", "with x0 < x1"),
    ):
        with pytest.raises(UsageError, match=line):
            exemplar_of(wrong)
    with pytest.raises(UsageError, match="expected a file after @"):
        split_entries(["cup|@"])
    for contrast in ("cup~@bowl.jpg", "cup~bowl| @bowl.jpg", "cup|@cup.jpg|mug~bowl|@bowl.jpg"):
        with pytest.raises(UsageError, match=r"expected words after ~ in .*, got a picture"):
            split_entries([contrast])
    assert split_entries(["cup|@~/a~b.jpg|@c.jpg"])[1] == ["cup|@~/a~b.jpg", "cup|@c.jpg"]
    assert split_entries(["@cup.jpg|cup~bowl"]) == (["cup~bowl"], ["cup~bowl|@cup.jpg"])
    with pytest.raises(UsageError, match="expected a list of exemplars"):
        Localizer("mini", exemplars="cup=@a.jpg")


@pytest.mark.parametrize(
    ("given", "asked"),
    [("two  words", "two  words"), (" two words ", "two words"), ("two words|pair", "two words|pair")],
)
def test_an_exemplar_is_found_by_its_name_as_it_was_asked_for(given, asked):
    """Names are compared as `prompts.parse` leaves them; a name that nobody reads would be a silent text."""
    localizer = Localizer(tower("gap_cnn", GRID), method="cam", exemplars=[Exemplar(given, noise(0))])
    torch.testing.assert_close(localizer.embed_names([asked])[0], embedding_of(localizer, noise(0)))
    assert (
        "presence is not calibrated where pictures or embeddings stand for a name: two words"
        in localizer(noise(1), [asked]).notes
    )


def test_what_cannot_be_used_is_refused():
    for box in (("a", "b", "c", "d"), (1, None, 3, 4), (0, 0, float("inf"), 4), (0, 0, 4)):
        with pytest.raises(UsageError, match="expected an exemplar's box as x0, y0, x1, y1"):
            Exemplar("cup", noise(0), box)
    with pytest.raises(UsageError, match="expected the name that an exemplar stands for"):
        Exemplar(" |cup", noise(0))
    with pytest.raises(UsageError, match=r"inside its 16×16 pixels, got \[0, 0, 17, 4\]"):
        Localizer("mini", exemplars=[Exemplar("cup", noise(0), (0, 0, 17, 4))])
    with pytest.raises(UsageError, match="with its text or without, got both"):
        Localizer("mini", exemplars=[Exemplar("cup", noise(0)), Exemplar("cup", noise(1), with_text=True)])
    with pytest.raises(InputError, match="an exemplar of 'cup'"):
        Localizer("RN50", "none.pt", exemplars=["cup=@none.jpg"])


@pytest.mark.parametrize("with_text", [False, True])
def test_presence_is_not_asked_of_exemplars(with_text):
    """Two pictures are always much alike, and the model's vocabulary does not matter."""
    localizer = Localizer("mini", recipe="fast", exemplars=[Exemplar("zyxwv", CAT, None, with_text)], min_presence=0.99)
    found = localizer(COFFEE, ["zyxwv", "giraffe"])
    assert found.reasons[0] is None or "presence" not in found.reasons[0]
    assert found.reasons[1] is not None
    assert found.presence[0] == 1
    assert "presence is not calibrated where pictures or embeddings stand for a name: zyxwv" in found.notes
    assert localizer.unknown_names(["zyxwv"]) == {}


def test_localize_compare_and_annotate_take_files(tmp_path):
    box = "[100,50,300,250]"
    fast = ("--recipe", "fast")
    document = document_of("localize", CAT, "-p", f"it=@{CAT}{box}", "-p", f"cup|@{COFFEE}", "-p", "dog", *fast)
    assert document["settings"]["names"] == ["it", "cup", "dog"]
    assert {name: one[1:] for name, one in document["settings"]["exemplars"].items()} == {"it": [], "cup": ["text"]}
    succeeded("compare", CAT, "-p", f"@{COFFEE}", "--method", "cam", "--out", tmp_path / "compare")
    (tmp_path / "labels.txt").write_text(f"it=@{CAT}{box} @0.3\ndog\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(CAT.read_bytes())
    asked = ("--labels", tmp_path / "labels.txt", "--out", tmp_path / "drafts", *fast)
    succeeded("annotate", tmp_path / "photos", *asked)
    assert "none.jpg" in refused("localize", CAT, "-p", "cup=@none.jpg")


def test_the_page_reads_no_file():
    """A name from the network is a text, whatever it looks like; exemplars are no setting of the page."""
    with pytest.raises(UsageError):
        from_mapping({"exemplars": ["x=@/etc/hostname"]})
    assert from_mapping({"names": f"cup=@{CAT}"}).arguments.get("exemplars") is None
    localizer = Localizer(tower("gap_cnn", GRID), method="cam")
    assert localizer(noise(0), [f"cup=@{CAT}"]).names == (f"cup=@{CAT}",)
