"""Whatever is fed or typed: one clear line, the documented exit code, and good pictures are still done.

The tables name every case; docs/cli.md lists them for people.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliploc import backbones
from tests.commands import CAT, Outcome, cliploc_, nobody, process


def localize(*arguments: object) -> Outcome:
    """With the recipe that sees a picture once: what goes wrong here goes wrong before, or after."""
    return cliploc_("localize", *arguments, "--recipe", "fast")


def cat(size: tuple[int, int] = (226, 150)) -> Image.Image:
    return Image.open(CAT).resize(size)


def write_text(path: Path) -> None:
    path.write_text("this is no picture\n")


def write_truncated(path: Path) -> None:
    path.write_bytes(CAT.read_bytes()[:9000])


def write_bomb(path: Path) -> None:
    """A PNG of some hundred bytes that declares 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_eps(path: Path) -> None:
    """A program that never ends, for whoever runs it."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n%%EOF\n")


def write_scans(path: Path) -> None:
    """A JPEG of 90 kB whose last scan comes 9,000 times."""
    cat((64, 64)).save(path, progressive=True)
    data = path.read_bytes()
    last = data.rfind(b"\xff\xda")
    path.write_bytes(data[:last] + data[last:-2] * 9_000 + data[-2:])


def write_16_bit(path: Path) -> None:
    grey = np.asarray(cat().convert("L"), dtype=np.uint16) * 257
    Image.fromarray(grey).save(path)


def write_palette(path: Path) -> None:
    picture = cat().quantize(64)
    picture.save(path, transparency=0)


def write_gif(path: Path) -> None:
    frames = [cat(), cat().rotate(180)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@dataclass(frozen=True)
class PictureCase:
    name: str
    file: str
    write: Callable[[Path], object]
    refused: str | None  # the reason's beginning; None: it works
    note: str = ""


PICTURES = [
    PictureCase("missing file", "missing.jpg", lambda path: None, "no such file: check the path"),
    PictureCase("empty file", "empty.jpg", lambda path: path.touch(), "the file is empty (0 bytes): download it again"),
    PictureCase("text renamed", "text.jpg", write_text, "not a picture that can be read: expected JPEG, PNG"),
    PictureCase("truncated JPEG", "cut.jpg", write_truncated, "damaged (image file is truncated"),
    PictureCase("1×1", "dot.png", cat((1, 1)).save, "1×1 pixels, expected at least 8×8: use a larger picture"),
    PictureCase("20,000×3", "line.png", cat((20_000, 3)).save, "20000×3 pixels, expected at least 8×8"),
    PictureCase("decompression bomb", "bomb.png", write_bomb, "more than 178 million pixels, expected at most 120"),
    PictureCase("a folder", "folder", lambda path: path.mkdir(), "is a folder, expected a picture: name its files"),
    PictureCase("name too long", "a" * 300 + ".jpg", lambda path: None, "no such file: check the path"),
    PictureCase("EPS renamed", "eps.jpg", write_eps, "not a picture that can be read: expected JPEG"),
    PictureCase(
        "9,000 scans", "scans.jpg", write_scans, "cannot be decoded: it has more than 200 scans: save it again"
    ),
    PictureCase("a pipe", "pipe.jpg", os.mkfifo, "is a device or a pipe, expected a picture file: save the picture"),
    PictureCase("CMYK", "cmyk.jpg", lambda path: cat().convert("CMYK").save(path), None),
    PictureCase("16 bits", "deep.png", write_16_bit, None),
    PictureCase("palette, transparent", "palette.png", write_palette, None),
    PictureCase("animated GIF", "moving.gif", write_gif, None, note="animated, 2 frames: the first is used"),
]
BROKEN = [case for case in PICTURES if case.refused]
WORKING = [case for case in PICTURES if not case.refused]


def made(case: PictureCase, folder: Path) -> Path:
    path = folder / case.file
    case.write(path)
    return path


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_a_broken_picture_alone_is_nothing_done(case, tmp_path):
    path = made(case, tmp_path)
    result = localize(path, "-p", "cat", "--json")
    assert result.code == 2
    first, summary = lines(result.err)
    assert first.startswith(f"failed: {path}: {case.refused}")
    assert "nothing could be done" in summary
    document = json.loads(result.out)
    assert document["pictures"] == []
    assert [failure["file"] for failure in document["failures"]] == [str(path)]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_a_broken_picture_among_good_ones_does_not_stop_them(case, tmp_path):
    path, out = made(case, tmp_path), tmp_path / "out"
    second = tmp_path / "second.png"
    cat().save(second)
    result = localize(CAT, path, second, "-p", "cat", "--out", out)
    assert result.code == 1
    assert case.refused in result.err
    assert f"{path}  failed" in result.out
    assert result.out.count("found") == 2
    assert (out / "cat_overlay.jpg").exists()
    assert (out / "second_overlay.jpg").exists()
    document = json.loads((out / "results.json").read_text())
    assert [picture["file"] for picture in document["pictures"]] == [str(CAT), str(second)]
    assert [failure["file"] for failure in document["failures"]] == [str(path)]


@pytest.mark.parametrize("case", WORKING, ids=lambda case: case.name)
def test_an_unusual_picture_is_seen_as_the_plain_one_is(case, tmp_path):
    path, plain = made(case, tmp_path), tmp_path / "plain.png"
    cat().convert("L" if case.name == "16 bits" else "RGB").save(plain)
    result = localize(plain, path, "-p", "cat", "--json")
    assert result.code == 0
    expected, seen = json.loads(result.out)["pictures"]
    assert seen["names"][0]["found"]
    # Clipped or inverted pictures differ by far more: 16 bits clipped at 255 are white.
    closeness = 0.002 if case.name == "16 bits" else 0.08
    assert seen["names"][0]["score"] == pytest.approx(expected["names"][0]["score"], abs=closeness)
    assert seen["notes"] == ([case.note] if case.note else [])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_an_unreadable_file_among_good_ones(open_folder):
    good, locked = open_folder / "good.png", open_folder / "locked.png"
    cat().save(good)
    cat().save(locked)
    assert localize(good, locked, "-p", "cat").code == 0  # and everything is imported now
    locked.chmod(0)
    with nobody():
        result = localize(good, locked, "-p", "cat")
        alone = localize(locked, "-p", "cat")
    assert (result.code, alone.code) == (1, 2)
    assert lines(result.err)[0] == f"failed: {locked}: permission denied: change its permissions"
    assert f"{good}  226×150" in result.out


def test_a_file_in_an_unreadable_folder(open_folder):
    inner = open_folder / "locked"
    inner.mkdir()
    cat().save(inner / "a.png")
    assert localize(inner / "a.png", "-p", "cat").code == 0
    inner.chmod(0)
    try:
        with nobody():
            result = localize(inner / "a.png", "-p", "cat")
    finally:
        inner.chmod(0o755)
    assert result.code == 2
    assert (
        lines(result.err)[0] == f"failed: {inner / 'a.png'}: permission denied for its folder: change its permissions"
    )


# -------------------------------------------------------------------------------------------------------------- names
@dataclass(frozen=True)
class NameCase:
    name: str
    prompts: tuple[str, ...]
    refused: str | None = None  # exit code 2 with this on stderr
    reason: str | None = None  # exit code 0, not found, with this reason on stdout


NAMES = [
    NameCase("no name", (), refused="expected at least one name to look for, got none"),
    NameCase("empty name", ("",), refused="expected a name, got an empty one (''): leave it out or fill it in"),
    NameCase("blank name", ("  \t ",), refused="expected a name, got an empty one"),
    NameCase("empty synonym", ("cat|",), refused="expected a name, got an empty one ('cat|')"),
    NameCase("10,000 characters", ("x" * 10_000,), refused="expected a name of at most 300 characters, got 10000"),
    NameCase("101 synonyms", ("|".join(f"cat {i}" for i in range(101)),), refused="expected at most 100 synonyms of a"),
    NameCase("duplicate names", ("cat", "dog", "cat"), refused="expected each name once, got 'cat' 2 times"),
    NameCase("emoji", ("🐈",), reason="mini reads English words, and finds none in '🐈'"),
    NameCase("Chinese", ("猫",), reason="mini reads English words, and finds none in '猫'"),
    NameCase("Cyrillic", ("кошка",), reason="mini reads English words, and finds none in 'кошка'"),
    NameCase("Arabic", ("قطة",), reason="mini reads English words"),
    NameCase("unknown tokens", ("xqzvkw",), reason="mini does not know 'xqzvkw': it has words for"),
    NameCase("punctuation", ("?!…",), reason="mini reads English words"),
]


@pytest.mark.parametrize("case", NAMES, ids=lambda case: case.name)
def test_names(case):
    result = localize(CAT, *(word for name in case.prompts for word in ("-p", name)))
    if case.refused:
        assert result.code == 2
        assert lines(result.err) == [result.err.rstrip("\n")]  # one line
        assert result.err.startswith(f"cliploc: {case.refused}")
        assert result.out == ""
    else:
        assert result.code == 0
        assert case.reason in result.out
        assert " no " in result.out
        assert "box" not in result.out


def test_a_known_name_is_found_beside_unknown_ones():
    result = localize(CAT, "-p", "🐈", "-p", "cat", "-p", "猫", "--json")
    names = json.loads(result.out)["pictures"][0]["names"]
    assert result.code == 0
    assert [(name["name"], name["found"]) for name in names] == [("🐈", False), ("cat", True), ("猫", False)]


# ------------------------------------------------------------------------------------------------------------ options
OPTIONS = {
    "unknown model": (["--model", "minni"], "unknown model 'minni': did you mean mini"),
    "unknown method": (["--method", "gradcam"], "unknown method 'gradcam': did you mean grad_cam"),
    "unknown weights": (["--pretrained", "laion"], "mini has only its bundled weights"),
    "τ above 1": (["--threshold", "1.5"], "expected --threshold from 0 to 1, or auto, got 1.5"),
    "τ below 0": (["--threshold=-0.1"], "expected --threshold from 0 to 1, or auto, got -0.1"),
    "τ not a number": (["--threshold", "nan"], "expected --threshold from 0 to 1, or auto, got nan"),
    "τ a word": (["--threshold", "high"], "expected --threshold from 0 to 1, or auto, got 'high'"),
    "presence": (["--min-presence", "7"], "expected --min-presence from 0 to 1, got 7"),
    "components": (["--components", "some"], "expected --components to be one of all, largest, got 'some'"),
    "max boxes": (["--max-boxes", "0"], "expected --max-boxes, a whole number from 1 to 1,000,000, got 0"),
    "resize": (["--resize", "stretch"], "expected --resize to be one of squash, crop, pad, got 'stretch'"),
    "image size": (
        ["--image-size", "big"],
        "expected --image-size of 1 to 4096 pixels, one side or height and width, got 'big'",
    ),
    "image size, stride": (["--image-size", "225"], "expected an image_size of multiples of 32"),
    "scales": (
        ["--scales", "1,two"],
        "expected --scales, a list of 1 to 16 numbers from 0.25 to 8 (1,1.5,2), got '1,two'",
    ),
    "scales, number": (
        ["--scales", ",".join(["1"] * 2000)],
        "expected --scales, a list of 1 to 16 numbers from 0.25 to 8 (1,1.5,2), got (1.0,",
    ),
    "scales, range": (
        ["--scales", "100"],
        "expected --scales, a list of 1 to 16 numbers from 0.25 to 8 (1,1.5,2), got (100.0,)",
    ),
    "template": (["--template", "a photo"], "expected a template with {} for the name, "),
    "background": (["--background", ""], "expected a name, got an empty one"),
    "device": (["--device", "toaster"], "expected --device as cpu, cuda, cuda:N or mps, got 'toaster'"),
    "device that is not here": (["--device", "cuda:99"], "expected a device of this machine (cpu"),
    "batch size": (["--batch-size", "0"], "expected --batch-size, a whole number from 1 to 4,096, got 0"),
    "batch size, huge": (
        ["--batch-size", "1" + "0" * 20],
        "expected --batch-size, a whole number from 1 to 4,096, got 1" + "0" * 20,
    ),
    "batch size, digits": (
        ["--batch-size", "1" * 400],
        "expected --batch-size, a whole number from 1 to 4,096, got 1111111111",
    ),
    "batch size, word": (["--batch-size", "many"], "expected --batch-size, a whole number from 1 to 4,096, got 'many'"),
    "batch size, 1e20": (["--batch-size", "1e20"], "expected --batch-size, a whole number from 1 to 4,096, got '1e20'"),
    "method option": (["--option", "speed=2"], "cam has no option 'speed': it has none"),
    "method option, form": (["--option", "speed"], "expected --option as key=value, got 'speed'"),
    "method option, type": (
        ["--method", "gscore_cam", "-o", "top_k=few"],
        "expected gscore_cam's option top_k to be a whole number, got 'few'",
    ),
    "unknown option": (["--treshold", "0.4"], "No such option: --treshold"),
    "option without value": (["--threshold"], "Option '--threshold' requires an argument"),
    "out is a file": (["--out", str(CAT)], f"cannot write to {CAT}: File exists: choose another folder with --out"),
    "out below a file": (["--out", str(CAT / "a")], f"cannot write to {CAT / 'a'}: Not a directory"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_bad_option_is_one_line_and_code_2(case):
    arguments, text = OPTIONS[case]
    result = cliploc_("localize", CAT, "-p", "cat", *arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert result.err.startswith(f"cliploc: {text}")


NO_HOME = "~no-such-user/a.txt"
PATHS = {
    "photo": ["localize", NO_HOME, "-p", "cat"],
    "weights": ["localize", CAT, "-p", "cat", "--model", "ViT-B-32", "--pretrained", NO_HOME],
    "folder of weights": ["localize", CAT, "-p", "cat", "--model", f"local-dir:{NO_HOME}"],
    "guide": ["localize", CAT, "-p", "cat", "--guide", f"dinov2-s@{NO_HOME}"],
    "head": ["localize", CAT, "-p", "cat", "--head", NO_HOME],
    "templates": ["localize", CAT, "-p", "cat", "--template", NO_HOME],
    "names": ["localize", CAT, "--prompts-file", NO_HOME],
    "classes": ["classify", CAT, "--classes", NO_HOME],
    "pictures": ["annotate", NO_HOME, "--labels", "a", "--out", "b"],
    "labels": ["annotate", CAT, "--labels", NO_HOME, "--out", "b"],
    "corrections": ["annotate", CAT, "--labels", "names.txt", "--out", "b", "--apply", NO_HOME, "--recipe", "fast"],
    "dataset": ["datasets", "coco", "--root", NO_HOME],
    "labelled dataset": ["benchmark", "--task", "segmentation", "--dataset", "voc21", "--root", NO_HOME, "--out", "b"],
    "training pictures": ["train", "ts_cam", "--root", NO_HOME, "--out", "b"],
    "head to write": ["train", "ts_cam", "--root", ".", "--out", NO_HOME],
    "review": ["review", NO_HOME],
}


@pytest.mark.parametrize("case", PATHS)
def test_the_home_of_a_user_that_is_not_there_is_a_path_that_is_not_there(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("cat\n")
    Path("a").write_text("cat\n")
    result = cliploc_(*PATHS[case])
    assert result.code == 2
    assert "an error in cliploc" not in result.err
    assert NO_HOME in result.err or case == "head to write"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["evaluate", "--maps", ".", "--metadata", ".", "--workers", 10**11], "--workers from 1 to 1024"),
        (["evaluate", "--maps", ".", "--metadata", ".", "--workers", -1], "--workers from 1 to 1024"),
        (["annotate", ".", "--labels", "a", "--out", "b", "--threads", 10**20], "--threads from 1 to 1024"),
        (["benchmark", "--dataset", "wsol", "--root", ".", "--out", "b", "--threads", 0], "--threads from 1 to 1024"),
        (["benchmark", "--dataset", "wsol", "--root", ".", "--out", "b", "--workers", 10**11], "--workers from 1 to"),
        (["classify", CAT, "--top-k", 10**20], "--top-k from 1 to 1000000"),
        (["annotate", ".", "--labels", "a", "--out", "b", "--review", 10**20], "--review from 0 to 100000"),
        (["annotate", ".", "--labels", "a", "--out", "b", "--limit", 0], "--limit from 1 to 10000000"),
        (["benchmark", "--dataset", "wsol", "--root", ".", "--out", "b", "--seed", -1], "--seed from 0 to 4294967295"),
        (["datasets", "wsol", "--root", ".", "--sample", 10**400], "--sample from 1 to 10000000"),
        (["train", "tscam", "--root", ".", "--out", "b", "--augmentations", 10**20], "--augmentations from 0 to 1000"),
        (["serve", "--max-megabytes", "inf"], "--max-megabytes from 0.01 to 2000"),
        (["serve", "--max-seconds", "nan"], "--max-seconds from 0.1 to 86400"),
        (["serve", "--queue", 2**31], "--queue from 1 to 10000"),
    ],
)
def test_numbers_have_a_stated_range(command, text):
    result = cliploc_(*command)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"cliploc: expected {text}")
    assert result.err.count("\n") == 1
    assert text.split()[0] + " " + text.split()[2] + "-" in " ".join(cliploc_(command[0], "--help").out.split())


def test_no_photo():
    result = cliploc_("localize", "-p", "cat")
    assert (result.code, result.out) == (2, "")
    example = 'cliploc localize street.jpg -p bicycle -p "traffic light" --out found'
    assert result.err == f"cliploc: expected PHOTO, got none: {example}\n"
    assert "{PHOTO}..." in cliploc_("localize", "--help").out.splitlines()[0]


def test_an_option_that_a_command_needs_is_named_with_an_example():
    assert cliploc_("annotate", "photos").err.startswith("cliploc: expected --labels, got none: cliploc annotate ")


def test_an_output_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(open_folder, monkeypatch):
    assert localize(CAT, "-p", "cat").code == 0

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tests.commands.create_once", never)
    monkeypatch.setattr(backbones, "create", never)
    open_folder.chmod(0o555)
    for command in (["localize", CAT, "-p", "cat"], ["demo"]):
        with nobody():
            result = cliploc_(*command, "--out", open_folder)
        assert (result.code, result.out) == (2, "")
        assert result.err == (
            f"cliploc: cannot write to {open_folder}: Permission denied: choose another folder with --out\n"
        )


def test_a_picture_too_narrow_for_the_policy_is_named(tmp_path):
    path = tmp_path / "narrow.png"
    cat((2000, 10)).save(path)
    assert localize(path, "-p", "cat").code == 0  # squash takes any
    result = localize(path, CAT, "-p", "cat", "--resize", "pad")
    assert result.code == 1
    assert lines(result.err)[0].startswith(f"failed: {path}: a picture of 2000×10 is too narrow for the 'pad' policy")


def test_the_same_photo_twice_is_done_twice(tmp_path):
    result = localize(CAT, CAT, "-p", "cat", "--out", tmp_path)
    assert result.code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cat_overlay.jpg", "cat_overlay-2.jpg", "results.json"}


def test_a_deleted_working_directory_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'cd "{gone}" && rmdir "{gone}" && exec "{sys.executable}" -m cliploc "$@"'
    words = ["localize", str(CAT), "-p", "cat", "--recipe", "fast"]
    result = subprocess.run(["sh", "-c", script, "sh", *words], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    said = "the working directory cannot be used (No such file or directory): change to another folder"
    assert result.stderr == f"cliploc: {said}\n"


def test_as_a_process_of_its_own(tmp_path):
    broken = tmp_path / "empty.jpg"
    broken.touch()
    result = process("localize", CAT, broken, "-p", "cat", "--json", "--recipe", "fast")
    assert result.returncode == 1
    assert len(json.loads(result.stdout)["pictures"]) == len(json.loads(result.stdout)["failures"]) == 1
    assert len(lines(result.stderr)) == 2
    refused = process("localize", CAT, "-p", "cat", "--method", "magic")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(lines(refused.stderr)) == 1
    assert "Traceback" not in result.stderr + refused.stderr
