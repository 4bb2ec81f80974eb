"""Whatever is fed or typed: one clear line, the documented exit code, and good pictures are still done."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cliploc import backbones
from tests.commands import CAT, Outcome, cliploc_, nobody, process, refused
from tests.test_images import OTHERS, REFUSED


def localize(*arguments: object) -> Outcome:
    """With the recipe that sees a picture once: what goes wrong here goes wrong before, or after."""
    return cliploc_("localize", *arguments, "--recipe", "fast")


def cat(size: tuple[int, int] = (226, 150)) -> Image.Image:
    return Image.open(CAT).resize(size)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_broken_pictures_are_named_one_by_one_and_do_not_stop_the_good_ones(tmp_path):
    """The other files that are refused are those of `tests/test_images.py`."""
    contents = {name: (data, text) for name, data, text in REFUSED}
    contents["EPS.jpg"] = OTHERS["EPS"]
    for name, (data, _) in contents.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.jpg")
    cat((1, 1)).save(tmp_path / "dot.png")
    reasons = {name: text for name, (_, text) in contents.items()} | {
        "dot.png": "1×1 pixels, expected at least 8×8: use a larger picture",
        "pipe.jpg": "is a device or a pipe, expected a picture file: save the picture first",
        "missing.jpg": "no such file: check the path",
        "a" * 300 + ".jpg": "no such file: check the path",
    }
    moving, out = tmp_path / "moving.gif", tmp_path / "out"
    cat().save(moving, save_all=True, append_images=[cat().rotate(180)])
    broken = [tmp_path / name for name in reasons]
    result = localize(CAT, *broken, moving, "-p", "cat", "--out", out)
    assert result.code == 1
    failed = [line for line in lines(result.err) if line.startswith("failed: ")]
    for path, line in zip(broken, failed, strict=True):
        assert line.startswith(f"failed: {path}: {reasons[path.name]}")
        assert f"{path}  failed" in result.out
    assert result.out.count("found") == 2
    document = json.loads((out / "results.json").read_text())
    assert [failure["file"] for failure in document["failures"]] == [str(path) for path in broken]
    assert [picture["file"] for picture in document["pictures"]] == [str(CAT), str(moving)]
    assert all((out / picture["overlay"]).exists() for picture in document["pictures"])
    assert [picture["notes"] for picture in document["pictures"]] == [[], ["animated: the first is used"]]


def test_a_broken_picture_alone_is_nothing_done():
    result = localize("no.jpg", "-p", "cat", "--json")
    assert result.code == 2
    first, summary = lines(result.err)
    assert first == "failed: no.jpg: no such file: check the path"
    assert "nothing could be done" in summary
    document = json.loads(result.out)
    assert (document["pictures"], [failure["file"] for failure in document["failures"]]) == ([], ["no.jpg"])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_an_unreadable_file_or_folder_among_good_ones(open_folder):
    good, locked, inner = open_folder / "good.png", open_folder / "locked.png", open_folder / "inner"
    inner.mkdir()
    for path in (good, locked, inner / "a.png"):
        cat().save(path)
    photos = (good, locked, inner / "a.png", "-p", "cat")
    assert localize(*photos).code == 0  # and everything is imported now
    locked.chmod(0)
    inner.chmod(0)
    try:
        with nobody():
            result, alone = localize(*photos), localize(locked, "-p", "cat")
    finally:
        inner.chmod(0o755)
    assert (result.code, alone.code) == (1, 2)
    assert lines(result.err)[:2] == [
        f"failed: {locked}: permission denied: change its permissions",
        f"failed: {inner / 'a.png'}: permission denied for its folder: change its permissions",
    ]
    assert f"{good}  226×150" in result.out


def test_names_that_are_refused():
    """As tests/test_prompts.py has them all."""
    assert refused("localize", CAT).startswith("cliploc: expected at least one name to look for, got none")
    said = refused("localize", CAT, "-p", "cat|")
    assert said.startswith("cliploc: expected a name, got an empty one ('cat|'): leave")


def test_a_known_name_is_found_beside_unknown_ones():
    shown = localize(CAT, "-p", "🐈", "-p", "cat", "-p", "猫", "-p", "?!…", "-p", "xqzvkw").out.splitlines()[1:]
    no_words = "mini reads English nouns, and finds none in"
    said = [f"no     {no_words} '🐈'", "found  score ", f"no     {no_words} '猫'", f"no     {no_words} '?!…'",
            "no     mini does not know 'xqzvkw': --model ViT-B-16 reads"]  # fmt: skip
    for line, expected in zip(shown, said, strict=True):
        assert expected in line


OPTIONS = {
    "unknown weights": (["--pretrained", "laion"], "mini has only its bundled weights"),
    "τ above 1": (["--threshold", "1.5"], "expected --threshold from 0 to 1, or auto, got 1.5"),
    "τ a word": (["--threshold", "high"], "expected --threshold from 0 to 1, or auto, got 'high'"),
    "minimum score": (["--min-score", "high"], "expected --min-score from 0 to 1, or auto, got 'high'"),
    "components": (["--components", "some"], "expected --components to be one of all, largest, got 'some'"),
    "image size": (["--image-size", "big"], "expected --image-size of 1 to 4096 pixels, one side or height and width"),
    "image size, stride": (["--image-size", "225"], "expected an image_size of multiples of 32"),
    "scales": (["--scales", "1,two"], "expected --scales, a list of 1 to 16 numbers from 0.25 to 8 (1,1.5,2), got '1,"),
    "device that is not here": (["--device", "cuda:99"], "expected a device of this machine (cpu"),
    "batch size, digits": (
        ["--batch-size", "1" * 400],
        "expected --batch-size, a whole number from 1 to 4,096, got 1111111111",
    ),
    "method option, form": (["--option", "speed"], "expected --option as key=value, got 'speed'"),
    "method option, type": (
        ["--method", "gscore_cam", "-o", "top_k=few"],
        "expected gscore_cam's option top_k to be a whole number, got 'few'",
    ),
    "option without value": (["--threshold"], "Option '--threshold' requires an argument"),
    "out is a file": (["--out", str(CAT)], f"cannot write to {CAT}: File exists: choose another folder with --out"),
    "out below a file": (["--out", str(CAT / "a")], f"cannot write to {CAT / 'a'}: Not a directory"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_bad_option_is_one_line_and_code_2(case):
    arguments, text = OPTIONS[case]
    assert refused("localize", CAT, "-p", "cat", *arguments).startswith(f"cliploc: {text}")


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
    if case == "review":
        pytest.importorskip("starlette")
    result = cliploc_(*PATHS[case])
    assert result.code == 2
    assert "an error in cliploc" not in result.err
    assert NO_HOME in result.err or case == "head to write"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["evaluate", "--maps", ".", "--metadata", ".", "--workers", 10**11], "--workers from 1 to 1024"),
        (["annotate", ".", "--labels", "a", "--out", "b", "--threads", 10**20], "--threads from 1 to 1024"),
        (["benchmark", "--dataset", "wsol", "--root", ".", "--out", "b", "--threads", 0], "--threads from 1 to 1024"),
        (["benchmark", "--dataset", "wsol", "--root", ".", "--out", "b", "--workers", 0], "--workers from 1 to 1024"),
        (["classify", CAT, "--top-k", 10**20], "--top-k from 1 to 1000000"),
        (["benchmark", "--dataset", "wsol", "--root", ".", "--out", "b", "--seed", -1], "--seed from 0 to 4294967295"),
        (["datasets", "wsol", "--root", ".", "--sample", 10**400], "--sample from 1 to 10000000"),
        (["serve", "--max-megabytes", "inf"], "--max-megabytes from 0.01 to 2000"),
        (["serve", "--max-seconds", "nan"], "--max-seconds from 0.1 to 86400"),
        (["serve", "--queue", 2**31], "--queue from 1 to 10000"),
    ],
)
def test_numbers_have_a_stated_range(command, text):
    assert refused(*command).startswith(f"cliploc: expected {text}")
    flag, _, least, *_, most = text.split()
    shown = f"{flag} {least}-" if float(most) <= 2**16 else f"{flag} N "
    assert shown in " ".join(cliploc_(command[0], "--help").out.split())


def test_an_argument_or_option_that_a_command_needs_is_named_with_an_example():
    example = 'cliploc localize street.jpg -p bicycle -p "traffic light" --out found'
    assert refused("localize", "-p", "cat") == f"cliploc: expected PICTURE, got none: {example}\n"
    assert refused("annotate", "photos").startswith("cliploc: expected --out, got none: cliploc annotate ")


def test_annotate_takes_names_in_one_way():
    neither = "cliploc: expected names with -p NAME, or a file of them with --labels, got neither\n"
    assert refused("annotate", "photos", "--out", "x") == neither
    assert refused("annotate", "photos", "--out", "x", "-p", "cat", "--labels", "y").endswith("got both\n")


def test_an_output_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(open_folder, monkeypatch):
    assert localize(CAT, "-p", "cat").code == 0

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tests.commands.create_once", never)
    monkeypatch.setattr(backbones, "create", never)
    open_folder.chmod(0o555)
    for command in (["localize", CAT, "-p", "cat"], ["demo"]):
        with nobody():
            said = refused(*command, "--out", open_folder)
        assert said == f"cliploc: cannot write to {open_folder}: Permission denied: choose another folder with --out\n"


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
