"""What every registered export format must do; a new format's file is tested here unedited."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliploc.formats import AnnotatedPicture, ExportSettings, chosen_exports, exports
from tests.label.annotated import annotated

NAMES = ("traffic light", 'a "large", red cat', "猫 & <кот>", "yes", "=1+1", "a|b\ttab", "x" * 300)
HOSTILE = (
    "plain.jpg",
    "plain.png",
    'sub folder/a, "b" & <c>\'d.jpg',
    "sub folder/猫é.jpg",
    "../beside/plain.jpg",
    "/etc/passwd.jpg",
    "//data/a.jpg",
    "..\\..\\data\\a.jpg",
    "C:\\data\\a.jpg",
    "images/labels/coco.json.jpg",
    "x" * 250 + ".jpg",
    "-rf *.jpg",
)
SETTINGS = ExportSettings(NAMES, "cliploc <mini> & cam", "/data/local-files/?d=")
every = pytest.mark.parametrize("export", list(exports), ids=lambda one: one.name)


def made(tmp_path: Path, names: tuple[str, ...]) -> list[AnnotatedPicture]:
    """Pictures of these names with no, one or two boxes; all are the same file."""
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (61, 37)).save(photo)
    pictures = []
    for number, name in enumerate(names, start=1):
        count = number % 3
        boxes = [[0, 0, 61, 37], [3.25, 4.5, 20.125, 30.75]][:count]
        label = np.arange(number, number + count) % len(NAMES)
        pictures.append(annotated(name, photo, (61, 37), boxes, label, [1.0, 0.123456][:count], number))
    return pictures


def content(folder: Path) -> dict[str, bytes]:
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


@every
def test_it_says_what_it_is(export):
    assert export.about.strip() == export.about
    assert "\n" not in export.about
    assert "|" not in export.about  # it stands in a table of Markdown
    assert export.outputs
    assert all(Path(name).name == name for name in export.outputs), "names in the folder, no paths"


def test_no_two_formats_write_the_same_file():
    outputs = [name.casefold() for one in exports for name in one.outputs]
    assert len(set(outputs)) == len(outputs)
    assert not set(outputs) & {"manifest.json", "summary.json", "review.html", "parts"}


@every
@pytest.mark.parametrize("count", [0, 1, len(HOSTILE)])
def test_it_writes_what_it_declares_and_nothing_else(export, count, tmp_path):
    pictures = made(tmp_path, HOSTILE[:count])
    out = tmp_path / "above" / "out"
    out.mkdir(parents=True)
    before = sorted(path.name for path in tmp_path.iterdir())
    export.write(lambda: iter(pictures), SETTINGS, out)
    assert sorted(one.name for one in out.iterdir()) == sorted(export.outputs)
    assert all((out / name).is_file() for name in export.files)
    assert all((out / name).is_dir() for name in export.folders)
    assert [one.name for one in (tmp_path / "above").iterdir()] == ["out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@every
def test_its_bytes_are_the_same_every_time(export, tmp_path):
    """Also in a second folder of that name, over files that are there, and after pictures have gone and come back."""
    pictures = made(tmp_path, HOSTILE)
    out = tmp_path / "out"
    out.mkdir()
    export.write(lambda: iter(pictures), SETTINGS, out)
    first = content(out)
    export.write(lambda: iter(pictures[:1]), SETTINGS, out)
    assert content(out) != first
    export.write(lambda: iter(pictures), SETTINGS, out)
    assert content(out) == first


@every
def test_files_alone_need_no_pictures(export, tmp_path):
    if export.folders:
        pytest.skip("comes with the pictures")
    pictures = made(tmp_path, HOSTILE)
    pictures[0].path.unlink()
    export.write(lambda: iter(pictures), SETTINGS, tmp_path)
    assert all((tmp_path / name).stat().st_size for name in export.files)


def test_formats_are_chosen_by_name_once_each():
    assert [one.name for one in chosen_exports(["csv", "coco", "csv"])] == ["csv", "coco"]
    assert [one.name for one in chosen_exports("coco")] == ["coco"]
