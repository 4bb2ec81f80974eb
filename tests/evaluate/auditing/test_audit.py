"""`audit` on photographs of the package: planted shortcuts, swaps whose outcome is known, and the command."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from cliploc import Localizer, Options, UsageError
from cliploc.evaluate.auditing.job import Audited, _Audit, audit
from cliploc.evaluate.auditing.measure import Auditor, Seen
from cliploc.evaluate.auditing.names import FEWEST, leaning, told_apart
from cliploc.support.files import demo_folder
from cliploc.towers.mini import Mini
from tests.commands import PHOTOS, cliploc_, refused

NAMES = ["cat", "dog", "osprey", "wren"]
PICTURES = {"cat": "cat.jpg", "dog": "dogs.jpg", "osprey": "osprey.jpg", "wren": "wren.jpg"}


def seen_by(auditor: Auditor, *names: str) -> list[Seen]:
    return [*auditor.see({name: PHOTOS / PICTURES[name] for name in names}, {})]


@pytest.fixture(scope="module")
def auditor() -> Auditor:
    return Auditor(Options(), NAMES)


# ---------------------------------------------------------------------------------------------------- swaps of features
def test_a_picture_with_its_own_background_is_as_before(auditor: Auditor) -> None:
    [cat] = seen_by(auditor, "cat")
    swapped = auditor.swapped(cat, [cat])  # with its own features, with its own bare ones, and the background alone
    assert torch.allclose(swapped[0], cat.trace.embedding[0], atol=1e-5)
    assert not torch.allclose(swapped[2], cat.trace.embedding[0], atol=1e-2)
    assert auditor.margins(swapped[:1], cat.first).item() == pytest.approx(cat.margin, abs=1e-4)


@pytest.mark.parametrize("model", ["mini", "mini-vit"])
def test_the_thing_decides_where_it_is_the_whole_input(model: str) -> None:
    auditor = Auditor(Options(model=model), NAMES)
    cat, dog = seen_by(auditor, "cat", "dog")
    whole = Seen(**{**vars(cat), "xyxy": np.array([[0.0, 0.0, *cat.item.picture.image.size]])})
    assert torch.allclose(auditor.swapped(whole, [dog])[0], cat.trace.embedding[0], atol=1e-4)


def test_pixels_of_the_thing_stay(auditor: Auditor) -> None:
    cat, dog = seen_by(auditor, "cat", "dog")
    on_dog, alone = auditor.pixels(cat, [dog])
    inside = cat.cover(*on_dog.shape[-2:]) == 1
    outside = cat.cover(*on_dog.shape[-2:]) == 0
    assert torch.equal(on_dog[:, inside], cat.item.inputs[0][:, inside])
    assert torch.equal(on_dog[:, outside], dog.item.inputs[0][:, outside])
    assert torch.equal(alone[:, outside], cat.item.inputs[0][:, outside])
    assert len(alone[:, inside].unique(dim=1).T) == 1


def test_cells_count_by_the_part_that_the_thing_covers(auditor: Auditor) -> None:
    [cat] = seen_by(auditor, "cat")
    width, height = cat.item.picture.image.size
    left = Seen(**{**vars(cat), "xyxy": np.array([[0, 0, 0.375 * width, height]])})
    assert left.cover(1, 4).tolist() == [[1, 0.5, 0, 0]]
    evidence = torch.tensor([[1.0, 1.0, 2.0, 0.0]])
    assert Seen(**{**vars(left), "evidence": evidence}).outside() == pytest.approx(2.5 / 4)


# ---------------------------------------------------------------------------------------------------- planted shortcuts
def framed(image: Image.Image) -> Image.Image:
    drawn = image.copy()
    ImageDraw.Draw(drawn).rectangle((0, 0, 223, 223), outline=(230, 20, 200), width=12)
    return drawn


def audited(folder: Path, planted: str | None) -> Audited:
    """Photographs of four names, of which one's have a frame that its row of the head asks for; and their audit."""
    folder.mkdir()
    localizer = Localizer(recipe="fast", scales=(1.0,))
    head = dict(zip(NAMES, localizer.embed_names(NAMES), strict=True))
    images = {name: Image.open(PHOTOS / file).convert("RGB").resize((224, 224)) for name, file in PICTURES.items()}
    for name, image in images.items():
        for number, angle in enumerate(range(-6, 9, 3)):
            one = image.rotate(angle, fillcolor=(120, 120, 120))
            (framed(one) if name == planted else one).save(folder / f"{name}{number}.png")
    if planted is not None:
        changes = [localizer(framed(one), ["cat"]).embedding - localizer(one, ["cat"]).embedding
                   for name, one in images.items() if name != planted]  # fmt: skip
        head[planted] = F.normalize(
            head[planted] + F.normalize(torch.from_numpy(np.mean(changes, axis=0)), dim=0), dim=0
        )
    return audit(folder, head, scales=(1.0,))


def test_a_planted_frame_comes_first(tmp_path: Path) -> None:
    planted, clean = audited(tmp_path / "planted", "dog"), audited(tmp_path / "clean", None)
    assert [one.name for one in planted.names if one.flagged] == ["dog"]
    assert not any(one.flagged for one in clean.names)
    assert not planted.calibrated  # a head is no text


# ------------------------------------------------------------------------------------------------- statistics of names
def leaning_of(lean: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    names, size = ["a", "b", "c"], len(first)
    rng = np.random.default_rng(1)
    around = rng.normal(0, 0.1, (size, 20)) + (first == 0)[:, None] * (np.arange(20) == 7)
    likeness = np.tile(np.arange(20) / 20, (3, 1))
    rows = leaning(names, first, lean, np.full(size, 0.5), around, [f"k{k}" for k in range(20)], likeness)
    return {row.name: row for row in rows}


def test_only_a_name_beyond_its_interval_is_flagged() -> None:
    rng, first = np.random.default_rng(0), np.repeat([0, 1, 2], 20)
    noise = rng.normal(0.1, 0.1, 60)
    assert not any(row.flagged for row in leaning_of(noise, first).values())
    rows = leaning_of(noise + 0.3 * (first == 0), first)
    assert [name for name, row in rows.items() if row.flagged] == ["a"]
    assert rows["a"].low < rows["a"].lean < rows["a"].high
    assert rows["a"].surroundings.startswith("k7")


def test_nothing_is_said_of_a_name_with_few_pictures() -> None:
    first = np.repeat([0, 1], [FEWEST - 1, 20])
    row = leaning_of(np.where(first == 0, 0.9, 0.1), first)["a"]
    assert (row.low, row.flagged) == (None, False)


def test_backgrounds_that_differ_tell_names_apart() -> None:
    rng, first = np.random.default_rng(0), np.repeat([0, 1, 2], 12)
    alone = rng.normal(0, 1, (36, 3))
    assert not told_apart(["a", "b", "c"], first, alone)
    alone[first == 0, 0] += 2
    told = told_apart(["a", "b", "c"], first, alone)
    assert sorted((pair.first, pair.second) for pair in told) == [("a", "b"), ("a", "c")]
    assert all(0.5 < pair.low < pair.auroc < pair.high < 1 for pair in told)
    alone[first == 0, 0] += 9
    assert all(0.5 < pair.low < 0.9 < pair.auroc == pair.high for pair in told_apart(["a", "b", "c"], first, alone))


# ---------------------------------------------------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for file in PICTURES.values():
        shutil.copyfile(PHOTOS / file, folder / file)
    (folder.parent / "names.txt").write_text("\n".join(NAMES))
    return folder


def test_the_command_writes_rows_a_document_and_a_page(folder: Path, tmp_path: Path) -> None:
    said = cliploc_("audit", folder, "--names", folder.parent / "names.txt", "--swap", "--out", tmp_path, "--json")
    assert said.code == 0, said.err
    document = json.loads(said.out)
    assert document == json.loads((tmp_path / "audit.json").read_text())
    assert document["calibrated"]
    rows = {row["picture"]: row for row in csv.DictReader((tmp_path / "pictures.csv").open(newline=""))}
    assert {file: rows[file]["prediction"] for file in rows} == {file: name for name, file in PICTURES.items()}
    known = [row for row in rows.values() if row["box"] == "found"]
    assert known
    assert all(0 <= float(row[key]) <= 1 for row in known for key in ("outside", "risk", "baseline"))
    assert all(row[key] in NAMES for row in known for key in ("swapped_1", "swapped_2", "alone"))
    page = (tmp_path / "audit.html").read_text()
    assert all(row["picture"] in page for row in known)
    assert "background alone" in page


def test_true_boxes_are_the_thing(folder: Path, tmp_path: Path) -> None:
    photos = json.loads((demo_folder() / "photos.json").read_text())
    [xyxy] = [one["boxes"][0]["xyxy"] for one in photos if one["file"] == "cat.jpg"]
    lines = ["path,label,x0,y0,x1,y1", f"cat.jpg,cat,{','.join(map(str, xyxy))}"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    rows = {row.picture: row for row in audit(folder, NAMES, truth=tmp_path / "labels.csv").pictures}
    assert rows["cat.jpg"].box == "true"
    assert [rows["cat.jpg"].x0, rows["cat.jpg"].y1] == pytest.approx([xyxy[0], xyxy[3]], abs=0.01)
    assert {row.box for name, row in rows.items() if name != "cat.jpg"} <= {"found", "none"}


def test_each_picture_takes_one_pass(folder: Path) -> None:
    with mock.patch.object(Mini, "run", autospec=True, side_effect=Mini.run) as run:
        audited = audit(folder, NAMES)
    assert run.call_count == len(audited.pictures)


def test_a_stopped_audit_goes_on_with_the_same_result(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, judged, calls = audit(folder, NAMES, swap=True), _Audit._judged, list[str]()

    def stopped(*of: Any) -> Any:
        calls.append("")
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judged(*of)

    with monkeypatch.context() as patched:
        patched.setattr(_Audit, "_judged", stopped)
        with pytest.raises(KeyboardInterrupt, match=r"2 pictures in .* are kept"):
            audit(folder, NAMES, tmp_path, swap=True)
        assert audit(folder, NAMES, tmp_path, swap=True) == expected
        assert len(calls) == 3 + len(PICTURES) - 2
        audit(folder, NAMES, tmp_path, swap=True)
        assert len(calls) == 3 + len(PICTURES) - 2
    with pytest.raises(UsageError, match=r"holds a run with other settings \(names.crow: only asked for\)"):
        audit(folder, [*NAMES, "crow"], tmp_path, swap=True)


@pytest.mark.parametrize("options", [{"model": "mini-vit"}, {"method": "grad_cam"}])
def test_other_models_and_methods_rank(folder: Path, options: dict[str, str]) -> None:
    audited = audit(folder, NAMES, **options)
    assert not audited.calibrated
    assert any(row.risk is not None for row in audited.pictures)


def test_a_picture_that_cannot_be_read_fails_alone(folder: Path, tmp_path: Path) -> None:
    for file in PICTURES.values():
        shutil.copyfile(folder / file, tmp_path / file)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    said = cliploc_("audit", tmp_path, "--names", folder.parent / "names.txt", "--out", tmp_path / "out")
    assert said.code == 1
    assert "broken.jpg" in said.err
    assert [one["picture"] for one in json.loads((tmp_path / "out/audit.json").read_text())["failed"]] == ["broken.jpg"]


def test_one_name_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("cat")
    message = refused("audit", folder, "--names", tmp_path / "one.txt", "--out", tmp_path / "out")
    assert "two names or more" in message
