"""The photographs that `cliploc demo` shows: whole, free to ship, with true boxes that fit them."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path

import pytest
from PIL import Image

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
