"""Videos: which frames are taken, what becomes of them, and what is said of those that cannot be read."""

import errno
import json
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cliploc.errors import InputError, UsageError
from cliploc.jobs import videos
from cliploc.jobs.annotate import annotate
from cliploc.jobs.picture_files import PictureFile, find_pictures
from cliploc.jobs.review_folder import ReviewFolder
from cliploc.jobs.videos import Every, frames_of
from tests.commands import cliploc_

av = pytest.importorskip("av")
pytestmark = pytest.mark.usefixtures("one_model")
OPTIONS = {"method": "cam", "min_presence": 0, "min_score": 0, "device": "cpu", "batch_size": 4}


def clip(path: Path, frames: int = 25, cut: int = 13, rate: int = 10, turned: bool = False) -> Path:
    """A video that is dark until `cut` and bright from there on; its upper left quarter is always red."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            pixels = np.full((48, 64, 3), 20 if number < cut else 230, np.uint8)
            pixels[:24, :32] = (200, 30, 30)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    if turned:  # as a telephone held upright says it: the matrix of the track's header turns by 90° to the right
        content = bytearray(path.read_bytes())
        at = content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
        content[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 * 65536, 0, 2**30)
        path.write_bytes(content)
    return path


def numbers(frames: list[PictureFile]) -> list[int]:
    return [int(one.id.partition("#")[2].removesuffix(".jpg")) for one in frames]


@pytest.mark.parametrize(
    ("every", "taken"),
    [
        ("10", [0, 10, 20]),
        ("1s", [0, 10, 20]),
        ("0.75s", [0, 8, 15, 23]),  # the first at 0, 0.75, 1.5 and 2.25 s or later, of ten a second
        ("0.1s", [*range(25)]),
        ("0.3s", [*range(0, 25, 3)]),
        ("scene", [0, 13]),
        ("scene, 20", [0, 13, 20]),
        ("1000", [0]),
    ],
)
def test_the_frames_that_are_taken(tmp_path, every, taken):
    video = PictureFile("sub/clip.mp4", clip(tmp_path / "sub/clip.mp4"))
    frames = frames_of(video, Every.of(every), tmp_path / "frames")
    assert numbers(frames) == taken
    assert frames[0].id == "sub/clip.mp4#000000.jpg"
    assert frames[0].path == tmp_path / "frames" / frames[0].id  # where a tool finds it that is given the folder
    for number, one in zip(taken, frames, strict=True):
        with Image.open(one.path) as image:
            assert image.size == (64, 48)
            assert image.getpixel((50, 40))[0] == pytest.approx(20 if number < 13 else 230, abs=8)


def test_frames_lie_in_the_folder_of_frames_whatever_the_video_is_called(tmp_path):
    path, frames = clip(tmp_path / "clip.mp4"), tmp_path / "out/frames"
    for name in ("../clip.mp4", str(path), "a/../../clip.mp4", "C:/clip.mp4", "..\\clip.mp4"):
        [one] = frames_of(PictureFile(name, path), Every(1000), frames)
        assert frames in one.path.resolve().parents
        assert one.id == f"{name}#000000.jpg"


def test_a_turned_video_is_upright(tmp_path):
    video = PictureFile("clip.mp4", clip(tmp_path / "clip.mp4", turned=True))
    with Image.open(frames_of(video, Every(1000), tmp_path / "frames")[0].path) as image:
        assert image.size == (48, 64)
        red = np.asarray(image).astype(int)
    red = red[..., 0] - red[..., 1] > 80
    assert red[2:30, 26:46].all()  # the upper left quarter is the upper right one, turned to the right
    assert red.mean() == pytest.approx(0.25, abs=0.05)


def test_frames_are_taken_once_and_again_when_the_video_has_changed(tmp_path):
    video = PictureFile("clip.mp4", clip(tmp_path / "clip.mp4"))
    first = frames_of(video, Every(10), tmp_path / "frames")
    times = [one.path.stat().st_mtime_ns for one in first]
    again = frames_of(video, Every(10), tmp_path / "frames")
    assert (again, [one.path.stat().st_mtime_ns for one in again]) == (first, times)
    first[1].path.unlink()
    assert frames_of(video, Every(10), tmp_path / "frames")[1].path.exists()
    clip(video.path, frames=8)
    assert numbers(frames_of(video, Every(10), tmp_path / "frames")) == [0]
    assert len(list((tmp_path / "frames").rglob("*.jpg"))) == 1


@given(st.text("02s.,cen ", max_size=12))
def test_any_text_is_read_or_refused(text):
    try:
        every = Every.of(text)
    except UsageError:
        return
    assert every.scenes or (every.frames or 0) > 0 or (every.seconds or 0) > 0


def test_a_video_that_cannot_be_read_is_one_failed_item(tmp_path):
    """None is waited for, each has its reason: no codec, a pipe, a name too long for those of frames, no picture."""
    odd = clip(tmp_path / "odd.mkv")
    odd.write_bytes(odd.read_bytes().replace(b"V_MPEG4/ISO/ASP", b"V_XXXXX/ISO/ASP"))
    os.mkfifo(tmp_path / "pipe.mp4")
    long = clip(tmp_path / f"{'n' * 250}.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip(tmp_path / 'a.mp4')}\n")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")  # could name any file
    for path, words in [
        (odd, "of a kind that is not known"),
        (tmp_path / "pipe.mp4", "a device or a pipe"),
        (long, "its name is too long"),
        (tmp_path / "gone.mp4", "No such file"),
        (tmp_path / "text.mp4", "a video that cannot be read"),
        (tmp_path / "list.mp4", "a video that cannot be read"),
        (tmp_path / "concat.mp4", "a video that cannot be read"),
    ]:
        with pytest.raises(InputError, match=f"^{re.escape(path.name)}: .*{words}"):
            frames_of(PictureFile(path.name, path), Every(10), tmp_path / "out")


def test_a_full_disk_ends_a_run_with_videos(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(videos, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        frames_of(PictureFile("a.mp4", clip(tmp_path / "a.mp4")), Every(10), tmp_path / "out")


def test_a_folder_with_videos(tmp_path):
    """Twins in two folders, one that is no video, and a photograph; then other frames, a replaced video, and none."""
    root, out = tmp_path / "root", tmp_path / "out"
    clip(root / "one/clip.mp4")
    clip(root / "two/clip.mp4", cut=5)
    (root / "broken.mov").write_bytes(b"no video")
    Image.new("RGB", (64, 48), "white").save(root / "cat.jpg")
    skipped = [(one.file, one.reason) for one in find_pictures(root).skipped]
    assert skipped == [(name, "is a video") for name in ("broken.mov", "one/clip.mp4", "two/clip.mp4")]
    made = annotate(root, ["cat"], out, formats=["coco", "yolo", "voc"], every="20", copy=True, **OPTIONS)
    assert (made.pictures, made.computed, list(made.failed)) == (6, 5, ["broken.mov"])
    assert "a video that cannot be read" in made.failed["broken.mov"]
    names = [f"{where}/clip.mp4#{number:06d}.jpg" for where in ("one", "two") for number in (0, 20)]
    read = json.loads((out / "coco.json").read_text())["images"]
    assert [one["file_name"] for one in read] == ["cat.jpg", *names]
    for layout in ("yolo/images", "voc/JPEGImages"):
        files = sorted((out / layout).iterdir())
        assert [one.name for one in files] == ["cat.jpg", *(n.replace("/", "__").replace("#", "_") for n in names)]
        assert not any(one.is_symlink() for one in files)
    assert [one.id for one in ReviewFolder(out).pictures] == ["cat.jpg", *names]  # the editor shows frames too
    left = out / f"frames/one/.cliploc-{json.loads((out / 'manifest.json').read_text())['token']}-{0:016x}.tmp"
    left.write_bytes(b"of a killed run")
    before = (out / "summary.json").read_bytes()
    with ReviewFolder.opened(out) as folder:
        assert folder.write_exports().failed == made.failed
    assert (out / "summary.json").read_bytes() == before  # nothing was edited
    again = annotate(root, ["cat"], out, **OPTIONS)  # as before
    assert (again.pictures, again.computed, left.exists()) == (6, 0, False)
    clip(root / "one/clip.mp4", cut=0)
    finer = annotate(root, ["cat"], out, every="10", **OPTIONS)
    assert (finer.pictures, finer.computed) == (8, 4)  # two that are new, and two of other content
    assert any("replaced since" in note and "(one/clip.mp4#000000.jpg, " in note for note in finer.notes)


def test_the_command_takes_frames_and_names_what_it_cannot_read(tmp_path):
    clip(tmp_path / "root/clip.mp4")
    words = ["annotate", tmp_path / "root", "-p", "cat", "--out", tmp_path / "out"]
    done = cliploc_(*words)
    assert (done.code, "found only videos" in done.err) == (2, True)
    done = cliploc_(*words, "--every", "two")
    assert (done.code, "expected every as 30 (each 30th frame), 2s" in done.err) == (2, True)
    done = cliploc_(*words, "--every", "20", "--method", "cam", "--min-presence", 0)
    assert (done.code, "2 of 2 pictures done" in done.err) == (0, True)


def test_addresses_are_refused_and_nothing_is_fetched(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("a.jpg\nhttps://example.org/a.jpg\nHTTP://example.org/b.jpg\n")
    for where, said in (
        (listed, "got https://example.org/a.jpg and 1 more addresses"),
        ("https://example.org/a.jpg", "cliploc reads files only, download them first"),
        (["s3://bucket/a.jpg"], "got s3://bucket/a.jpg: cliploc reads files only"),
    ):
        with pytest.raises(UsageError, match=said):
            find_pictures(where)
