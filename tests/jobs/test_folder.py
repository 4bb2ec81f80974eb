"""The folder of a run: nobody else's files are touched, and what is damaged or out of date is noticed and said."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cliploc import __version__, backbones
from cliploc._files import alone_in, parts_in, read_part, read_stamps, write_part
from cliploc.errors import CliplocError, UsageError
from cliploc.jobs import annotate as annotate_module
from cliploc.jobs import annotation_results, folder
from cliploc.jobs.annotate import annotate
from cliploc.jobs.review_folder import ReviewFolder
from cliploc.report.exports import exports
from cliploc.reporter import Reporter
from tests.commands import PHOTOS, refused
from tests.jobs.samples import review_file
from tests.tiny import tower

LABELS = ["cat", "dog", "bee"]
# A tiny tower and drafts of every name: what becomes of files does not depend on what is found.
OPTIONS = {"batch_size": 1, "device": "cpu", "shard": 1, "review": 0, "recipe": "fast"}
OPTIONS |= {"min_presence": 0, "min_score": 0}


@pytest.fixture(scope="module", autouse=True)
def tiny():
    made = tower("gap_cnn", (8, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "create", lambda *_, **__: made)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three small photographs."""
    root = tmp_path_factory.mktemp("pictures")
    for name in ("bee", "cat", "dogs"):
        with Image.open(PHOTOS / f"{name}.jpg") as opened:
            opened.resize((opened.width // 3, opened.height // 3)).save(root / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """A run that nothing happened to."""
    return annotate(photos, LABELS, tmp_path_factory.mktemp("made"), formats=["coco", "csv"], **OPTIONS)


@pytest.fixture
def copy(photos, made, tmp_path):
    """Its folder and pictures, to be changed."""
    shutil.copytree(photos, tmp_path / "pictures")
    shutil.copytree(made.out, tmp_path / "out")
    return tmp_path / "pictures", tmp_path / "out"


def content(folder: Path) -> dict[str, object]:
    """What depends on neither the time nor the place of a run."""
    found: dict[str, object] = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        if path.name == "summary.json" and path.read_bytes()[:1] == b"{":
            found[path.name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "stamps"}
        elif path.name != "manifest.json" and path.suffix != ".check":
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def flipped(whole: bytes, bit: int) -> bytes:
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


# ------------------------------------------------------------------------------------------------ the users own files
def users_files(folder: Path) -> None:
    (folder / ".mail.2019.old/inbox").mkdir(parents=True)
    (folder / ".mail.2019.old/inbox/1").write_text("a letter")
    (folder / "parts/.cache.12.old").mkdir(parents=True)
    for name in (".bashrc.20240101.old", ".notes.1.tmp", "parts/.notes.1.tmp", "parts/.cache.12.old/a"):
        (folder / name).write_text("mine")


def test_the_users_hidden_files_survive_a_run(photos, made, tmp_path):
    users_files(tmp_path)
    before = content(tmp_path)
    for _ in range(2):
        annotate(photos, LABELS, tmp_path, formats=["coco", "csv"], **OPTIONS)
        assert content(tmp_path) == {**before, **content(made.out)}


@pytest.mark.parametrize("manifest", ["{}", '{"kind": "mine"}', "not JSON", b"\xff\xfe", "[" * 10**5, '"text"'])
def test_a_refused_folder_is_left_as_it_is(photos, tmp_path, manifest):
    users_files(tmp_path)
    (tmp_path / "manifest.json").write_bytes(manifest if isinstance(manifest, bytes) else manifest.encode())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"choose another --out"):
        annotate(photos, LABELS, tmp_path, **OPTIONS)
    labels = tmp_path.parent / f"{tmp_path.name}.txt"
    labels.write_text("cat\n")
    for command in (
        ("annotate", photos, "--labels", labels),
        ("benchmark", "boxes", "--dataset", "folder", "--root", photos.parent),
    ):
        assert "mistake" not in refused(*command, "--out", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


# -------------------------------------------------------------------------------------------------- an older cliploc's
def changed_manifest(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    change(manifest)
    (out / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_begun_before_an_option_was_there_resumes_with_its_default(copy, made):
    photos, out = copy
    changed_manifest(out, lambda manifest: manifest["settings"].pop("masks_by"))
    for path in out.glob("parts/00001.*"):
        path.unlink()
    (out / "summary.json").unlink()
    with pytest.raises(UsageError, match=r"settings\.flip: false there, true asked for"):
        annotate(photos, LABELS, out, formats=["coco", "csv"], flip=True, **OPTIONS)
    result = annotate(photos, LABELS, out, formats=["coco", "csv"], **OPTIONS)
    assert result.computed == 1
    assert content(out) == content(made.out)


@pytest.mark.parametrize("settings", [lambda one: one, lambda one: [{"id": "mini_cam", **one}]], ids=["one", "several"])
def test_an_option_that_is_not_in_the_manifest_counts_as_its_default(tmp_path, settings):
    """Also one of the protocol, whose options have no value by default."""

    def begin(tolerance: dict[str, object] | None = None, **options: object) -> None:
        manifest = {"kind": kind.name, "schema_version": kind.version, "token": "0" * 16}
        protocol = {"steps": 3, **(tolerance or {})}
        folder.begin(
            tmp_path, kind, {**manifest, "settings": settings({"flip": False, **options}), "protocol": protocol}
        )

    kind = folder.RunKind("test", "a test", 1, ".jsonl", frozenset())
    begin()
    begin({"tolerance": None}, masked_precision=None, guide=None)
    with pytest.raises(UsageError, match=r"protocol\.tolerance: only asked for"):
        begin({"tolerance": 0.02})
    for later in ({"masked_precision": "bf16"}, {"guide": "mini"}, {"no_option": None}):
        with pytest.raises(UsageError, match=rf"{next(iter(later))}: only asked for"):
            begin(**later)


def test_a_run_of_another_version_is_refused_with_what_to_do(copy):
    photos, out = copy
    changed_manifest(out, lambda manifest: manifest.update(cliploc_version="0.1.0"))
    with pytest.raises(
        UsageError, match=rf"holds a run by cliploc 0\.1\.0, this is {__version__}: resume it with that"
    ):
        annotate(photos, LABELS, out, formats=["coco", "csv"], **OPTIONS)


@pytest.mark.parametrize("name", ["coco.json", "yolo/labels/mine.txt", "summary.json", "review.html"])
def test_a_file_of_the_user_is_not_written_over(photos, copy, tmp_path, name):
    said = f"holds {name.split('/')[0]}, not written by this run.*move it away"
    (tmp_path / "new" / name).parent.mkdir(parents=True)
    (tmp_path / "new" / name).write_text("mine")
    options = {**OPTIONS, "formats": ["coco", "yolo"], "review": 1}
    with pytest.raises(UsageError, match=said):
        annotate(photos, LABELS, tmp_path / "new", **options)
    assert content(tmp_path / "new") == {name: b"mine"}
    if name.startswith(("yolo", "review")):  # nor is one that came into the folder of a run
        (copy[1] / name).parent.mkdir(parents=True, exist_ok=True)
        (copy[1] / name).write_text("mine")
        with pytest.raises(UsageError, match=said):
            annotate(copy[0], LABELS, copy[1], **options)
        assert (copy[1] / name).read_text() == "mine"


def test_every_export_says_what_it_writes(photos, tmp_path):
    result = annotate(photos, LABELS, tmp_path, formats=exports.names(), **OPTIONS)
    assert {name: set(files) for name, files in result.files.items()} == {one.name: set(one.outputs) for one in exports}


# -------------------------------------------------------------------------------------------------------- damaged files
UNLIKE_ROWS = {"not a row": "true", "no keys": '{"picture": "cat.png"}', "nested": "[" * 10**5, "digits": "1" * 5000}


@pytest.mark.parametrize("damage", ["digit", "empty", "no check", "check", "swapped", *UNLIKE_ROWS, "unknown label"])
def test_a_damaged_part_is_computed_anew_to_the_same_bytes(copy, made, damage):
    """Also one whose checksum is right, but whose rows are none of this run's."""
    pictures, out = copy
    path, other = parts_in(out, ".jsonl")[1:]
    check, whole = path.with_suffix(".check"), path.read_bytes()
    assert path.stem == "00001"
    if damage == "digit":
        place = re.search(rb'"boxes": \[\[(\d)', whole).start(1)
        path.write_bytes(flipped(whole, 8 * place))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no check":
        check.unlink()
    elif damage == "check":
        check.write_bytes(b"[" * 10**5)
    elif damage == "swapped":
        path.write_bytes(other.read_bytes())
    else:
        row = json.loads(whole)
        unlike = json.dumps({**row, "labels": [len(LABELS)] * len(row["labels"])})
        write_part(path, f"{UNLIKE_ROWS.get(damage, unlike)}\n".encode(), read_stamps(path))
    said = []
    result = annotate(pictures, LABELS, out, reporter=Reporter(note=said.append), **OPTIONS)
    assert said == ["part 00001 is damaged: it is computed again"]
    assert result.computed == 1
    assert content(out) == content(made.out)


def test_other_files_among_the_parts_are_named_and_ignored(copy, made):
    pictures, out = copy
    names = ["00000 (conflicted copy).jsonl", "1e3.jsonl", "٣٣٣٣٣.jsonl"]
    for name in names:
        shutil.copy(out / "parts/00000.jsonl", out / "parts" / name)
    said = []
    result = annotate(pictures, LABELS, out, reporter=Reporter(note=said.append), **OPTIONS)
    assert (result.computed, result.document()) == (0, made.document())
    assert said == [f"not of this run, and ignored: {', '.join(names)} in {out / 'parts'}"]
    assert all((out / "parts" / name).exists() for name in names)


@pytest.mark.parametrize(
    "text", ["", "{", '"a"', "{}", '{"files": [], "stamps": {}}', '{"files": {"coco": 3}, "stamps": {}}', "[" * 10**5]
)
def test_a_damaged_summary_is_written_anew(copy, made, text):
    pictures, out = copy
    (out / "summary.json").write_text(text)
    (out / "coco.json").write_text("old")  # whether it is up to date is not known any more
    result = annotate(pictures, LABELS, out, formats=["csv"], **OPTIONS)
    assert result.computed == 0
    assert content(out) == content(made.out)


@pytest.mark.parametrize(
    "change",
    [{"sessions": 3}, {"files": None}, {"token": ".*"}, {"settings": [3]}, {"labels": []}, {"schema_version": 1}],
)
def test_a_manifest_that_is_damaged_or_of_another_version_is_one_line(copy, change):
    pictures, out = copy
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, **change}))
    before = content(out)
    with pytest.raises(UsageError, match="choose another --out"):
        annotate(pictures, LABELS, out, **OPTIONS)
    assert content(out) == before


def test_a_folder_with_decisions_of_an_old_page_is_one_line_before_anything_is_computed(copy):
    pictures, out = copy
    (out / "decisions.json").write_text("{}")
    shutil.copy(pictures / "cat.png", pictures / "new.png")
    started, before = [], (out / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match=r"decisions\.json is of a review page before cliploc 0\.2\.0"):
        annotate(pictures, LABELS, out, reporter=Reporter(images=started.append), **{**OPTIONS, "max_boxes": 1})
    assert not started
    assert (out / "manifest.json").read_bytes() == before


# -------------------------------------------------------------------------------------------------------- several runs
def test_two_runs_at_once_do_not_share_a_folder(copy):
    pictures, out = copy
    before = content(out)
    shutil.copy(pictures / "cat.png", pictures / "new.png")
    with alone_in(out), pytest.raises(UsageError, match=r"another run is writing into .*wait until it ends, or choose"):
        annotate(pictures, LABELS, out, **OPTIONS)
    assert content(out) == before
    assert annotate(pictures, LABELS, out, **OPTIONS).computed == 1


def test_reviews_applied_by_several_threads_are_all_there(copy):
    """Whoever meets another run is told so, and repeats it."""
    pictures, out = copy
    names = [one["picture"] for one in map(json.loads, b"".join(map(read_part, parts_in(out, ".jsonl"))).splitlines())]

    def apply(name: str) -> None:
        path = review_file(out, out.parent / f"{name}.json", {name: []})
        while True:
            try:
                annotate(pictures, LABELS, out, decisions=path, **OPTIONS)
                return
            except UsageError as error:
                if "another run is writing" not in str(error):
                    raise

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(apply, names[:2]))
    assert set(json.loads((out / "corrections.json").read_text())["pictures"]) == set(names[:2])
    assert json.loads((out / "summary.json").read_text())["pictures_reviewed"] == 2


# ---------------------------------------------------------------------------------------------------- replaced pictures
@pytest.mark.parametrize("times_restored", [False, True])
def test_a_picture_replaced_under_its_name_is_done_anew_and_said(copy, made, times_restored):
    pictures, out = copy
    for path in pictures.iterdir():
        os.utime(path, ns=(1, 1))
    assert annotate(pictures, LABELS, out, **OPTIONS).computed == 0  # they were only touched
    assert content(out) == content(made.out)
    old = (pictures / "cat.png").stat()
    emptied = {name: {"boxes": [], "labels": []} for name in ("cat.png", "dogs.png")}
    identity = hashlib.sha256(
        json.dumps([(read := json.loads((out / "manifest.json").read_text()))["labels"], read["settings"]]).encode()
    ).hexdigest()[:16]
    saved = {"kind": "cliploc corrections", "schema_version": 4, "run": identity, "pictures": emptied}
    (out / "corrections.json").write_text(json.dumps(saved))
    shutil.copy(pictures / "bee.png", pictures / "cat.png")
    if times_restored:
        os.utime(pictures / "cat.png", ns=(old.st_atime_ns, old.st_mtime_ns))
    said = []
    result = annotate(pictures, LABELS, out, reporter=Reporter(note=said.append), **OPTIONS)
    ending = "1 picture (cat.png); what was corrected in 1 of them is dropped"
    assert said == [f"replaced since they were annotated, and annotated again: {ending}"]
    written = json.loads((out / "coco.json").read_text())
    boxes = {image["id"]: [] for image in written["images"]}  # in the order of names: bee, cat, dogs
    for one in written["annotations"]:
        boxes[one["image_id"]].append((one["category_id"], one["bbox"]))
    bee, cat, dogs = boxes.values()
    assert (result.computed, cat, dogs) == (1, bee, [])
    assert bee
    assert list(json.loads((out / "corrections.json").read_text())["pictures"]) == ["dogs.png"]
    assert sum(len(part.read_bytes().splitlines()) for part in parts_in(out, ".jsonl")) == 3
    before = content(out)
    assert annotate(pictures, LABELS, out, **OPTIONS).computed == 0
    assert content(out) == before
    assert "cat.png" in (out / "coco.json").read_text()
    assert (out / "draft_scores.json").exists()
    shutil.copy(pictures / "bee.png", pictures / "dogs.png")
    result = annotate(pictures, LABELS, out, **OPTIONS)
    assert (result.corrected, result.draft_scores, (out / "draft_scores.json").exists()) == (0, {}, False)


# ------------------------------------------------------------------------------------------------------ injected faults
@pytest.mark.parametrize(
    ("call", "nth", "error"),
    [
        ("fsync", 1, errno.EIO),  # of the manifest
        ("fsync", 9, errno.ENOSPC),  # of a part; each second one is of a folder, and may fail
        ("replace", 4, errno.ENOSPC),  # of a part
        ("replace", 8, errno.EROFS),
        ("replace", 11, errno.EIO),  # of the summary
    ],
)
def test_a_failing_system_call_leaves_nothing_half_written(photos, made, tmp_path, monkeypatch, call, error, nth):
    count = 0
    true = {"fsync": os.fsync, "replace": Path.replace}[call]

    def fail(*arguments):
        nonlocal count
        count += 1
        if count == nth:
            raise OSError(error, os.strerror(error))
        return true(*arguments)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, fail)
        with pytest.raises((CliplocError, OSError)) as caught:
            annotate(photos, LABELS, out, formats=["coco", "csv"], **OPTIONS)
    if isinstance(caught.value, OSError):
        assert caught.value.filename is not None  # so that the command line names it
    assert not list(out.rglob(".cliploc-*"))
    assert content(annotate(photos, LABELS, out, formats=["coco", "csv"], **OPTIONS).out) == content(made.out)


@pytest.fixture
def corrected(made, tmp_path):
    """A set for `--apply`: one box is gone, one is moved, one is new."""
    document = json.loads((made.out / "coco.json").read_text())
    boxes = document["annotations"]
    moved = {**boxes[1], "bbox": [2, 3, 20, 30], "segmentation": []}
    document["annotations"] = [moved, {**moved, "id": 10_000, "bbox": [1, 1, 40, 20]}, *boxes[2:]]
    path = tmp_path / "corrected.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(("owner", "call", "error"), [(os, "fsync", errno.EIO), (Path, "replace", errno.ENOSPC)])
def test_whichever_call_of_apply_fails_the_next_run_ends_as_if_none_had(
    photos, made, tmp_path, monkeypatch, corrected, owner, call, error
):
    def apply(out):
        return annotate(photos, LABELS, out, formats=["coco", "csv"], decisions=corrected, **OPTIONS)

    def fresh(name):
        return Path(shutil.copytree(made.out, tmp_path / name))

    true, count, fails = getattr(owner, call), 0, 0

    def counted(*arguments, **more):
        nonlocal count
        count += 1
        if count == fails:
            raise OSError(error, os.strerror(error))
        return true(*arguments, **more)

    monkeypatch.setattr(owner, call, counted)
    wanted, calls = content(apply(fresh("plain")).out), count
    assert wanted != content(made.out)
    assert calls
    for fails in range(1, calls + 1):
        count, out = 0, fresh(f"{call} {fails}")
        with contextlib.suppress(CliplocError, OSError):
            apply(out)
        assert count >= fails
        assert not list(out.rglob(".cliploc-*"))
        count = -(10**9)
        assert content(apply(out).out) == wanted


# -------------------------------------------------------------------------------------------------------------- exports
def test_a_folder_says_which_run_and_how_many_corrections_its_files_are_of(copy):
    pictures, out = copy
    first = json.loads((out / "summary.json").read_text())
    assert re.fullmatch("[0-9a-f]{16}", first["run"])
    dropped = review_file(out, out.parent / "review.json", {"cat.png": []})
    annotate(pictures, LABELS, out, decisions=dropped, **OPTIONS)
    second = json.loads((out / "summary.json").read_text())
    assert second["run"] == first["run"] == json.loads((out / "corrections.json").read_text())["run"]
    states = json.loads((out / "exports.json").read_text())["exports"]
    of_all = {"state": "current", "run": second["run"], "corrected": 1}
    assert states == {name: {**of_all, "files": files} for name, files in second["files"].items()}


def test_no_export_looks_current_that_is_not(copy, monkeypatch):
    """Killed after the boxes changed, before or while exports are written."""
    pictures, out = copy

    def kill(*_, **__):
        raise KeyboardInterrupt

    def states():
        exported = json.loads((out / "exports.json").read_text())["exports"]
        return {name: one["state"] for name, one in exported.items()}

    shutil.copy(pictures / "bee.png", pictures / "new.png")
    before = states()
    assert set(before.values()) == {"current"}
    for owner, name in ((annotate_module, "conclude"), (type(exports.get("coco")), "write")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, kill)
            with pytest.raises(KeyboardInterrupt):
                annotate(pictures, LABELS, out, formats=["coco"], **OPTIONS)
        assert states()["coco"] == "stale"
    annotate(pictures, LABELS, out, formats=["coco"], **OPTIONS)
    assert states() == before


@pytest.mark.parametrize("killed_at", ["csv", "summary"])
def test_an_export_of_a_killed_run_is_kept_up_to_date(copy, monkeypatch, killed_at):
    pictures, out = copy
    shutil.rmtree(out)

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if killed_at == "csv":
            patch.setattr(type(exports.get("csv")), "write", kill)
        else:
            patch.setattr(annotation_results, "AnnotateResult", kill)
        with pytest.raises(KeyboardInterrupt):
            annotate(pictures, LABELS, out, formats=["yolo", "csv"], image_url="https://host/", **OPTIONS)
    assert (out / "yolo/labels/cat.txt").exists()
    assert not (out / "summary.json").exists()
    shutil.copy(pictures / "bee.png", pictures / "new.png")
    result = annotate(pictures, LABELS, out, formats=["labelstudio"], **OPTIONS)
    expected = {"yolo", "labelstudio"} | ({"csv"} if killed_at == "summary" else set())
    assert set(result.files) == expected
    assert (out / "yolo/labels/new.txt").exists()
    assert "https://host/new.png" in (out / "labelstudio.json").read_text()


def exported(out: Path) -> dict[str, object]:
    return {name: one for name, one in content(out).items() if name != "yolo/labels.cache"}


DAMAGE: dict[str, Callable[[Path], object]] = {
    "coco.json": lambda path: os.truncate(path, 100),
    "boxes.csv": Path.unlink,
    "yolo/labels/cat.txt": Path.unlink,
    "yolo/images/bee.png": Path.unlink,
    "voc/Annotations/dogs.xml": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "review.html": lambda path: path.write_text(""),
}


def test_a_damaged_export_is_written_again_and_the_others_are_not(photos, tmp_path):
    of = {**OPTIONS, "review": 3, "formats": ["coco", "csv", "yolo", "voc"]}
    out = annotate(photos, LABELS, tmp_path, **of).out
    (out / "yolo/labels.cache").write_text("of a training")  # nobody else's file is a reason to write it again
    before, stamps = exported(out), {path: path.lstat().st_mtime_ns for path in out.rglob("*")}
    annotate(photos, LABELS, out, **of)
    assert {path: path.lstat().st_mtime_ns for path in out.rglob("*")} == stamps
    for name, damage in DAMAGE.items():
        damage(out / name)
        said: list[str] = []
        annotate(photos, LABELS, out, reporter=Reporter(phase=said.append), **of)
        format_ = {"coco.json": "coco", "boxes.csv": "csv"}.get(name, name.partition("/")[0])
        assert said == ["annotate", f"writing {format_}"]
        assert exported(out) == before


def test_ids_in_exports_do_not_depend_on_when_a_picture_was_added(photos, tmp_path):
    """The editor's exports are those of `annotate`, and both are those of one run over all pictures."""
    root = tmp_path / "pictures"
    (root / "a").mkdir(parents=True)
    for name in ("cat.png", "a/dogs.png"):
        shutil.copy(photos / Path(name).name, root / name)
    out = annotate(root, LABELS, tmp_path / "out", formats=["coco", "csv"], **OPTIONS).out
    shutil.copy(photos / "bee.png", root)
    shutil.copy(photos / "bee.png", root / "a")
    annotate(root, LABELS, out, **OPTIONS)
    whole = annotate(root, LABELS, tmp_path / "whole", formats=["coco", "csv"], **OPTIONS).out
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"pictures/{name}\n" for name in ("cat.png", "a/dogs.png", "bee.png", "a/bee.png")))
    of_list = annotate(listed, LABELS, tmp_path / "of_list", formats=["coco", "csv"], **OPTIONS).out
    names = [one["file_name"] for one in json.loads((whole / "coco.json").read_text())["images"]]
    assert names == ["bee.png", "cat.png", "a/bee.png", "a/dogs.png"]
    wanted = [(whole / name).read_bytes() for name in ("coco.json", "boxes.csv")]
    assert [(out / name).read_bytes() for name in ("coco.json", "boxes.csv")] == wanted
    for written in ("coco.json", "boxes.csv"):
        (out / written).unlink()
    with ReviewFolder.opened(out) as opened:
        assert [one.id for one in opened.pictures] == names
        opened.write_exports()
    assert [(out / name).read_bytes() for name in ("coco.json", "boxes.csv")] == wanted
    assert (of_list / "coco.json").read_text().replace("pictures/", "") == (whole / "coco.json").read_text()
