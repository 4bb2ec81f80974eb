"""Whatever is fed or typed: one clear line, the documented exit code, and good pictures are still done."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from cliploc import options as config
from cliploc import towers
from cliploc.options import FaithfulnessOptions, Options, SegmentationOptions, option_of
from tests.commands import CAT, Outcome, cliploc_, nobody, refused_in_one_line
from tests.images.test_images import REFUSED


def localize(*arguments: object) -> Outcome:
    """With the recipe that sees a picture once: what goes wrong here goes wrong before, or after."""
    return cliploc_("localize", *arguments, "--recipe", "fast")


def cat(size: tuple[int, int] = (226, 150)) -> Image.Image:
    return Image.open(CAT).resize(size)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_broken_pictures_are_named_one_by_one_and_do_not_stop_the_good_ones(tmp_path):
    """The other files that are refused are those of `tests/images/test_images.py`."""
    contents = {name: (data, text) for name, data, text in REFUSED}
    for name, (data, _) in contents.items():
        (tmp_path / name).write_bytes(data)
    cat((1, 1)).save(tmp_path / "dot.png")
    reasons = {name: text for name, (_, text) in contents.items()} | {
        "dot.png": "1×1 pixels, expected at least 8×8: use a larger picture",
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


def test_a_known_name_is_found_beside_unknown_ones():
    shown = localize(CAT, "-p", "🐈", "-p", "cat", "-p", "猫", "-p", "?!…", "-p", "xqzvkw").out.splitlines()[1:]
    no_words = "mini reads English nouns, and finds none in"
    said = [f"no     {no_words} '🐈'", "found  score ", f"no     {no_words} '猫'", f"no     {no_words} '?!…'",
            "no     mini does not know 'xqzvkw': --model ViT-B-16 reads"]  # fmt: skip
    for line, expected in zip(shown, said, strict=True):
        assert expected in line


OF_COMMANDS = {"localize": Options, "segment": SegmentationOptions, "explain": FaithfulnessOptions}
FLAGS = [
    (command, flag)
    for command, kind in OF_COMMANDS.items()
    for one in fields(kind)
    for flag in config.flags_of(one.name)[:1]
    if "/" not in flag and not option_of(one).python_only and one.name not in ("memory", "target")
]
NAMED = ("localize", CAT, "-p", "cat")


@pytest.mark.parametrize(("command", "flag"), FLAGS)
def test_an_option_of_no_use_is_one_line_that_says_what_was_expected_and_what_came(command, flag):
    line = refused_in_one_line([command, CAT, "-p", "cat", "-p", "dog", f"{flag}=¿"], "¿")
    if " to be one of " in line or " from " in line:
        assert re.match(rf"cliploc: expected {flag}[, ].*, got '¿'", line)


BOTH = ("compare", CAT, "-p", "cat", "--method")
TRAIN = ("train", "tscam", "--out", "x", "--root")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["lokalize"], "'localize'"),
        (["localize", CAT, "-p"], "-p"),
        (["localize", CAT, "--prmpt", "cat"], "--prompt"),
        ([*NAMED, "--threads", "x"], "--threads, a whole number from 1 to 1,024, got 'x'"),
        ([*NAMED, "--recipe", "fast", "--method", "cam"], "a method or a recipe"),
        ([*NAMED, "--method", "gscore_cam", "-o", "top_k=few"], "'few'"),
        ([*NAMED, "--out", CAT], f"{CAT}: File exists"),
        (["localize", "-p", "cat"], 'PICTURE, got none: cliploc localize street.jpg -p bicycle -p "traffic light"'),
        (["annotate", "photos"], "--out, got none: cliploc annotate "),
        (["annotate", "photos", "--out", "x"], "--labels, got neither"),
        (["annotate", "photos", "--out", "x", "-p", "cat", "--labels", "y"], "got both"),
        (["classify", CAT, "-p", "cat", "-p", "@cup.jpg"], "'@cup.jpg'"),
        (["compare", "--method", "cam", "-p", "cat"], "PICTURE"),
        (["compare", CAT, "--method", "cam"], "name"),
        (["compare", CAT, "-p", "cat"], "--method"),
        ([*BOTH, "cam,gem"], "gem does not work on mini"),
        ([*BOTH, "gem,legrad", "--model", "mini", "--model", "mini-vit"], "mini, a cnn tower; legrad does not"),
        ([*BOTH, "cam", "--model", "mini", "--model", "mini"], "mini 2 times"),
        ([*BOTH, "cam", "-o", "no=1"], "no=1"),
        (["compare", CAT, "--labels", "imagenet", "--method", "cam"], "at most 400 cells"),
        (["segment", CAT, "-p", "cat"], "only 'cat'"),
        (["segment", CAT], "names"),
        (["segment", CAT, "-p", "cat", "-p", "cup=@a.jpg"], "cup=@a.jpg"),
        (["segment", CAT, "-p", "cat", "-p", "cup", "--rle"], "--rle"),
        (["segment", CAT, "-p", "cat", "-p", "cup", "--method", "grad_cam"], "grad_cam"),
        (["segment", CAT, "-p", "qwxz", "--background", "cat", "--template", "name-only"], "mini"),
        (["segment", CAT, "-p", "cat", "-p", "cup", "--regions", "files:none"], "label maps (*.png) of regions in"),
        (["explain", CAT], "at least one name"),
        (["explain", CAT, "-p", "@cup.jpg", "--method", "cam"], "'@cup.jpg'"),
        (["explain", "no.jpg", "-p", "cat", "--method", "cam"], "no.jpg"),
        (["datasets", "cub", "--split", "test"], "cliploc datasets cub --root DIR"),
        (["datasets", "--root", "x"], "cliploc datasets NAME --root x"),
        (["datasets", "cub", "--root", "."], "`cliploc datasets NAME`"),
        ([*TRAIN, "none"], "a folder with a folder for each class"),
        (["train", "grad_cam", "--out", "x", "--root", "."], "METHOD to be one of tscam, lctr"),
        (["label-studio", "--pictures", "/nowhere"], "/nowhere"),
        (["label-studio", "--label-studio-url", "localhost:8080"], "--label-studio-url as an address"),
        (["label-studio", "--auth-env", "NOT_SET_HERE"], "NOT_SET_HERE"),
    ],
)
def test_what_cannot_be_done_is_one_line_that_names_it(arguments, names, tmp_path, monkeypatch):
    """Of any command."""
    monkeypatch.chdir(tmp_path)
    refused_in_one_line(arguments, names)


@pytest.mark.parametrize(
    ("command", "flag", "value", "least", "most"),
    [
        (["classify", CAT], "--top-k", "x", "1", "10,000,000"),
        (["benchmark", "boxes", "--dataset", "wsol", "--root", ".", "--out", "b"], "--seed", -1, "0", "4,294,967,295"),
        (["serve"], "--max-megabytes", "inf", "0.01", "2000"),
        (["serve"], "--max-seconds", "nan", "0.1", "86400"),
    ],
)
def test_numbers_have_a_stated_range(command, flag, value, least, most):
    refused_in_one_line([*command, flag, value], flag, f"from {least} to {most}", value)
    words = f"{flag} {least}-" if float(most.replace(",", "")) <= 2**16 else f"{flag} N "
    named = command[: 2 if command[0] in ("benchmark", "evaluate") else 1]
    assert words in " ".join(cliploc_(*named, "--help").out.split())


def test_an_output_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(open_folder, monkeypatch):
    assert localize(CAT, "-p", "cat").code == 0

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tests.commands.create_once", never)
    monkeypatch.setattr(towers, "create", never)
    open_folder.chmod(0o555)
    for command in (["localize", CAT, "-p", "cat"], ["demo"]):
        with nobody():
            refused_in_one_line([*command, "--out", open_folder], f"{open_folder}: Permission denied")
