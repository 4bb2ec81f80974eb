"""Training: what it learns, what it survives, and what it reports."""

import csv
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from cliploc import Localizer
from cliploc.errors import ModelError, UsageError
from cliploc.evaluate.train import trainer
from cliploc.evaluate.train.train_settings import TrainSettings
from cliploc.evaluate.train.trainer import (
    CROP,
    FeatureCache,
    LabelledPictures,
    hold_out,
    read_csv,
    read_folder,
    train,
    view,
)
from cliploc.find.heads import HEADS, load_head
from cliploc.find.prompts import parse
from cliploc.find.texts import embed
from cliploc.support.reporter import Reporter
from tests.commands import begun, refused, succeeded
from tests.evaluate.samples import wsol_folder
from tests.evaluate.train.run import main
from tests.evaluate.train.run import settings as run_settings
from tests.tiny import COLOURS, SIDE, seeded, tower

GRID = (5, 6)
HW = (GRID[0] * SIDE, GRID[1] * SIDE)


def write_colours(root: Path, each: int, seed: int = 0) -> Path:
    """Noisy grey pictures with a patch of the class's colour."""
    random = np.random.default_rng(seed)
    for colour, rgb in COLOURS.items():
        (root / colour).mkdir(parents=True)
        for number in range(each):
            pixels = 0.5 + 0.1 * random.standard_normal((*HW, 3))
            y, x = random.integers(0, GRID[0]) * SIDE, random.integers(0, GRID[1]) * SIDE
            pixels[y : y + SIDE, x : x + SIDE] = rgb
            Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).save(root / colour / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("colours") / "root", each=8)


def quick(method: str = "ts_cam", kind: str = "open", **changed: Any) -> TrainSettings:
    settings = {"epochs": 2, "batch_size": 8, "held_out": 0.25, **changed}
    return TrainSettings(method=method, kind=kind, **settings)  # type: ignore[arg-type]


def trained_on(colours: Path, out: Path, **changed: Any) -> Any:
    return train(tower("vit", GRID), read_folder(colours), out, quick(**changed))


# -------------------------------------------------------------------------------------------------------------- kills
def killed(*arguments: object) -> bool:
    process = begun(main, *map(str, arguments))
    process.join(300)
    return process.exitcode == -signal.SIGKILL


def test_a_killed_training_goes_on_to_the_same_bits(colours: Path, tmp_path: Path) -> None:
    """kill -9 among the features, and again in the middle of the third epoch."""
    out = tmp_path / "killed" / "head.safetensors"
    assert killed(colours, out, "lctr", "features", 3)
    assert not out.exists()
    assert killed(colours, out, "lctr", "training", 8)
    assert not out.exists()
    folder = out.with_name("head.safetensors.training")
    assert len((folder / "history.csv").read_text().splitlines()) == 1 + 2
    train(tower("vit", GRID), read_folder(colours), out, run_settings("lctr"))
    uninterrupted = tmp_path / "uninterrupted" / "head.safetensors"
    train(tower("vit", GRID), read_folder(colours), uninterrupted, run_settings("lctr"))
    assert out.read_bytes() == uninterrupted.read_bytes()
    checkpoint = "head.safetensors.training/checkpoint.safetensors"
    mine, theirs = load_file(out.parent / checkpoint), load_file(uninterrupted.parent / checkpoint)
    assert mine.keys() == theirs.keys()
    assert any(name.startswith("optimizer.") for name in mine)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_checkpoint_of_other_settings_or_labels_is_not_taken_up(colours: Path, tmp_path: Path) -> None:
    backbone, pictures, out = tower("vit", GRID), read_folder(colours), tmp_path / "head.safetensors"
    train(backbone, pictures, out, quick(held_out=0))  # else parts would differ, too
    for others, settings in ((pictures, {"lr": 0.5}), (replace(pictures, labels=pictures.labels[::-1]), {})):
        with pytest.raises(UsageError, match="other settings, pictures or weights: delete it to start again"):
            train(backbone, others, out, quick(held_out=0, **settings))
    (tmp_path / "head.safetensors.training/checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(UsageError, match="cannot read the checkpoint"):
        train(backbone, pictures, out, quick(held_out=0))


# ------------------------------------------------------------------------------------------------------------- features
def cache_of(folder: Path, backbone: Any, pictures: LabelledPictures, **changed: Any) -> FeatureCache:
    settings = {"dense": True, "augmentations": 0, "input_hw": HW, "batch_size": 5}
    return FeatureCache(folder, backbone, pictures, **{**settings, **changed})


def test_cached_features_are_the_towers(colours: Path, tmp_path: Path) -> None:
    backbone, pictures = tower("vit", GRID), read_folder(colours)
    cache = cache_of(tmp_path, backbone, pictures)
    cache.fill()
    numbers = [17, 3, 20]
    seen = cache.rows(numbers, 0, torch.device("cpu"))
    pixels = np.stack([np.asarray(Image.open(pictures.paths[n])).transpose(2, 0, 1) for n in numbers])
    fresh = cache._look(pixels)
    torch.testing.assert_close(seen.tokens, fresh.tokens, rtol=1e-3, atol=2e-3)  # kept in half precision
    torch.testing.assert_close(seen.attention, fresh.attention)
    torch.testing.assert_close(seen.dense, fresh.dense, rtol=1e-3, atol=1e-3)


def test_nothing_is_computed_twice(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "PART_BYTES", 12_000)  # several parts
    backbone, pictures = tower("vit", GRID), read_folder(colours)
    cache = cache_of(tmp_path, backbone, pictures, augmentations=1)
    assert len(cache.parts) > 4
    cache.fill()
    made = {path: path.stat().st_mtime_ns for path in cache.folder.rglob("*.safetensors")}
    assert len(made) == len(cache.parts)
    lost = cache.folder / "view-01" / "part-00001.safetensors"
    content = lost.read_bytes()
    lost.unlink()
    again = cache_of(tmp_path, backbone, pictures, augmentations=1)
    assert again.folder == cache.folder
    again.fill()
    assert lost.read_bytes() == content
    assert all(path.stat().st_mtime_ns == time for path, time in made.items() if path != lost)


def test_features_belong_to_weights_and_pictures(colours: Path, tmp_path: Path) -> None:
    backbone, pictures = tower("vit", GRID), read_folder(colours)
    folder = cache_of(tmp_path, backbone, pictures).folder
    assert cache_of(tmp_path, tower("vit", GRID, seed=3), pictures).folder != folder
    assert cache_of(tmp_path, backbone, pictures, input_hw=(HW[0] + SIDE, HW[1])).folder != folder
    shutil.copytree(colours, tmp_path / "other")
    moved = read_folder(tmp_path / "other")
    first = cache_of(tmp_path, backbone, moved).folder
    Image.new("RGB", (30, 30)).save(moved.paths[0])
    assert cache_of(tmp_path, backbone, moved).folder != first


def test_a_view_is_a_crop_and_perhaps_a_mirror(tmp_path: Path) -> None:
    ramp = np.stack([np.tile(np.arange(96) * 2, (64, 1)), np.tile(np.arange(64)[:, None] * 3, (1, 96))], axis=-1)
    Image.fromarray(np.dstack([ramp, ramp[..., :1]]).astype(np.uint8)).save(tmp_path / "ramp.png")
    plain = view(tmp_path / "ramp.png", 0, 0, "squash", (64, 96))
    mirrored, starts, starts_of_others = set(), set(), set()
    for which in range(1, 13):
        pixels = view(tmp_path / "ramp.png", 0, which, "squash", (64, 96)).astype(int)
        assert np.array_equal(pixels, view(tmp_path / "ramp.png", 0, which, "squash", (64, 96)))
        across = pixels[0, 32, -8] - pixels[0, 32, 7]
        mirrored.add(bool(across < 0))
        starts.add(int(pixels[1, 0, 0]))
        assert abs(across) == pytest.approx(CROP * (int(plain[0, 32, -8]) - int(plain[0, 32, 7])), abs=3)
        starts_of_others.add(int(view(tmp_path / "ramp.png", which, 1, "squash", (64, 96))[1, 0, 0]))
    assert mirrored == {True, False}
    assert min(len(starts), len(starts_of_others)) > 4


def test_pictures_that_cannot_be_read_are_named_and_left_out(colours: Path, tmp_path: Path) -> None:
    shutil.copytree(colours, tmp_path / "root")
    (tmp_path / "root" / "red" / "00.png").write_bytes(b"no picture")
    (tmp_path / "root" / "blue" / "07.png").write_bytes(b"")
    pictures, errors = read_folder(tmp_path / "root"), []
    reporter = Reporter(failed=lambda _, error: errors.append(str(error)))
    trained = train(tower("vit", GRID), pictures, tmp_path / "head.safetensors", quick(), reporter=reporter)
    assert len(errors) == 2
    assert [str(path) for path in trained.unread] == [error.partition(" cannot be read")[0] for error in errors]
    assert errors[1].endswith("red/00.png cannot be read as a picture")
    used = {pictures.paths[n].relative_to(tmp_path / "root") for n in trained.parts.train + trained.parts.held_out}
    assert len(used) == 22
    assert Path("red/00.png") not in used


@pytest.mark.parametrize("kind", ["closed", "open"])
def test_a_class_without_a_picture_that_can_be_read_is_left_out(colours: Path, tmp_path: Path, kind: str) -> None:
    """Its weights would stay random: a head must not claim to know it."""
    shutil.copytree(colours, tmp_path / "root")
    for broken in (tmp_path / "root" / "blue").iterdir():
        broken.write_bytes(b"no picture")
    (tmp_path / "root" / "a").mkdir()
    notes: list[str] = []
    out, backbone = tmp_path / "head.safetensors", tower("vit", GRID)
    train(backbone, read_folder(tmp_path / "root"), out, quick(kind=kind), reporter=Reporter(note=notes.append))
    head = load_head(out, backbone)
    assert head.config.classes == (("green",), ("red",))
    assert notes[0] == "left out, as none of their pictures can be read: a, blue"
    if kind == "closed":
        assert head.unknown_reason(("blue",)) is not None
    for broken in (tmp_path / "root" / "green").iterdir():
        broken.write_bytes(b"no picture")
    with pytest.raises(UsageError, match="read of at least two classes, got them of 1 of 4: check the files"):
        train(backbone, read_folder(tmp_path / "root"), out, quick(kind=kind))


def test_progress_and_files_show_every_epoch(colours: Path, tmp_path: Path) -> None:
    events: list[tuple[object, ...]] = []
    reporter = Reporter(
        phase=lambda label: events.append((label,)),
        images=lambda count: events.append(("images", count)),
        note=lambda line: events.append(("note", line)),
    )
    trained = train(tower("vit", GRID), read_folder(colours), tmp_path / "head", quick(), reporter=reporter)
    at = events.index(("training",))
    assert events[:at] == [("features of the frozen tower",), ("images", 16), ("images", 8)]
    assert sum(int(str(one[1])) for one in events[at:] if one[0] == "images") == 2 * len(trained.parts.train)
    assert [one for one in events if one[0] == "note"] == [("note", one.line(2)) for one in trained.history]
    rows = list(csv.DictReader((tmp_path / "head.training/history.csv").open()))
    assert [float(row["loss"]) for row in rows] == [epoch.loss for epoch in trained.history]


# ------------------------------------------------------------------------------------------------------------- pictures
def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for folder in ("n01440764", "traffic_light", "cat,kitten", ".hidden"):
        (tmp_path / folder / "more").mkdir(parents=True)
        for name in ("b.png", "more/a.JPG", "notes.txt"):
            (tmp_path / folder / name).write_bytes(b"x")
    pictures = read_folder(tmp_path)
    assert pictures.classes == (("cat", "kitten"), ("tench", "Tinca tinca"), ("traffic light",))
    assert [path.name for path in pictures.paths] == ["b.png", "a.JPG"] * 3
    assert pictures.labels == (0, 0, 1, 1, 2, 2)
    with pytest.raises(UsageError, match=r"two classes \(a folder for each class in .*\), found 0"):
        read_folder(tmp_path / "cat,kitten" / "more")
    with pytest.raises(UsageError, match=r"got .*none, which is not a folder"):
        read_folder(tmp_path / "none")


def test_a_csv_of_paths_and_labels(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("path,label\na.png,cat|kitten\n\nsub/b.png,n01440764\nc.png,cat|kitten\na.png, cat|kitten\n")
    pictures = read_csv(file)
    assert pictures.paths == (tmp_path / "a.png", tmp_path / "sub/b.png", tmp_path / "c.png")
    assert pictures.labels == (0, 1, 0)
    assert pictures.classes == (("cat", "kitten"), ("tench", "Tinca tinca"))
    file.write_text("a.png,cat\nb.png\n")
    with pytest.raises(UsageError, match=r"labels.csv, line 2: expected path,label, got 'b.png'"):
        read_csv(file)


def test_pictures_are_held_out_of_every_class() -> None:
    labels = (0,) * 10 + (1,) * 4 + (2,)
    parts = hold_out(labels, tuple(range(15)), 0.25, "pictures", seed=1)
    validation = [labels[number] for number in parts.held_out]
    assert [validation.count(label) for label in range(3)] == [2, 1, 0]
    assert sorted(parts.train + parts.held_out) == list(range(15))
    assert parts.train_classes == parts.held_out_classes == (0, 1, 2)
    assert parts == hold_out(labels, tuple(range(15)), 0.25, "pictures", seed=1)
    assert parts != hold_out(labels, tuple(range(15)), 0.25, "pictures", seed=2)
    assert 10 in hold_out((0,) * 10 + (1,), tuple(range(11)), 0.9, "pictures", seed=1).train  # the only one stays
    with pytest.raises(UsageError, match="--hold-out classes with an open head"):
        hold_out((0, 1, 2), (0, 1, 2), 0.3, "pictures", seed=0)


def test_all_of_a_class_is_held_out() -> None:
    labels = tuple(label for label in range(8) for _ in range(3))
    parts = hold_out(labels, tuple(n for n in range(24) if n != 4), 0.25, "classes", seed=0)
    assert len(parts.held_out_classes) == 2
    assert {labels[number] for number in parts.held_out} == set(parts.held_out_classes)
    assert {labels[number] for number in parts.train} == set(parts.train_classes)
    assert not set(parts.train_classes) & set(parts.held_out_classes)
    with pytest.raises(UsageError, match=r"hold out at least two of .* classes and leave two"):
        hold_out(labels, tuple(range(24)), 0.1, "classes", seed=0)


# ------------------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize(("kind", "by"), [("closed", "pictures"), ("open", "pictures"), ("open", "classes")])
def test_epochs_are_steps_of_sgd_on_the_training_part(kind: str, by: str, colours: Path, tmp_path: Path) -> None:
    backbone, paths = tower("vit", GRID), read_folder(colours).paths
    labels = tuple(number % 4 for number in range(len(paths)))
    pictures = LabelledPictures(paths, labels, (("red",), ("green",), ("blue",), ("a lamp",)))
    share = 0.25 if by == "pictures" else 0.5
    chosen = quick(kind=kind, epochs=4, batch_size=24, held_out=share, hold_out=by, augmentations=1, seed=3, lr=0.3)
    trained = train(backbone, pictures, tmp_path / "head", chosen)
    parts = trained.parts
    assert sorted(parts.train + parts.held_out) == list(range(24))
    cache = cache_of(tmp_path / "features", backbone, pictures, dense=kind == "open", augmentations=1)
    head = seeded(lambda: HEADS["ts_cam"](trained.head.config), 3)
    text = embed(parse([words[0] for words in pictures.classes]), backbone.encode_text) if kind == "open" else None

    def numbers(part: tuple[int, ...], among: tuple[int, ...], which: int) -> tuple[torch.Tensor, float]:
        logits = head(cache.rows(part, which, torch.device("cpu")), text)[:, list(among)]
        target = torch.tensor([among.index(labels[number]) for number in part])
        return F.cross_entropy(logits, target), float((logits.argmax(dim=1) == target).float().mean())

    moved = [torch.zeros_like(weight) for weight in head.parameters()]
    for number, epoch in enumerate(trained.history):
        loss, accuracy = numbers(parts.train, parts.train_classes, number % 2)
        assert (epoch.loss, epoch.train_accuracy) == pytest.approx((loss.item(), accuracy), rel=1e-3)
        slopes = torch.autograd.grad(loss, [*head.parameters()])
        with torch.no_grad():
            for weight, slope, move in zip(head.parameters(), slopes, moved, strict=True):
                move.mul_(0.9).add_(slope + 5e-4 * weight)
                weight -= epoch.lr * move
        assert epoch.accuracy == pytest.approx(numbers(parts.held_out, parts.held_out_classes, 0)[1])


def test_the_learning_rate_falls(colours: Path, tmp_path: Path) -> None:
    cosine = trained_on(colours, tmp_path / "b", epochs=4, batch_size=18, lr=0.4, patience=9)  # a step an epoch
    expected = [0.4, 0.4 * (1 + 0.5**0.5) / 2, 0.2, 0.4 * (1 - 0.5**0.5) / 2]
    assert [epoch.lr for epoch in cosine.history] == pytest.approx(expected)


def test_it_stops_when_patience_ends_and_keeps_the_best(colours: Path, tmp_path: Path) -> None:
    trained = trained_on(colours, tmp_path / "a", kind="closed", epochs=40, lr=1.0, patience=3)
    accuracies = [epoch.accuracy for epoch in trained.history]
    assert len(accuracies) < 40
    assert len(accuracies) == trained.best + 3
    assert accuracies.index(max(a for a in accuracies if a is not None)) == trained.best - 1
    last = load_file(tmp_path / "a.training" / "checkpoint.safetensors")
    assert torch.equal(trained.head.state_dict()["conv.weight"], last["best.conv.weight"])
    assert not torch.equal(last["head.conv.weight"], last["best.conv.weight"])


# ------------------------------------------------------------------------------------------------------------ localizer
@pytest.fixture(scope="module")
def mini_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed head for red, green and blue on the bundled CNN, made by the command line."""
    root = write_colours(tmp_path_factory.mktemp("mini") / "root", each=4)
    out = root.parent / "head.safetensors"
    options = ("--head", "closed", "--epochs", "2", "--held-out", "0.25")
    result = succeeded("train", "tscam", "--root", root, "--out", out, *options)
    assert result.out.startswith(f"{out}  epoch ")
    assert "held-out accuracy" in result.out
    assert "epoch 2 of 2  loss " in result.err
    assert "trained on 9 pictures of 3 classes, 3 held out" in result.err
    assert result.err.endswith(f"\nnext: cliploc localize photo.jpg -p blue --head={out}\n")
    return out


def test_a_head_names_its_method_and_its_classes(mini_head: Path, colours: Path) -> None:
    localizer = Localizer("mini", head=mini_head, min_presence=0)
    assert localizer.method.name == "ts_cam"
    result = localizer(sorted(colours.rglob("*.png"))[0], ["red", "a lamp"])
    assert result.reasons[1] == "the closed head knows its 3 classes only: train an open one for other names"
    assert result.maps[0].max() == 1
    assert localizer.options_of("ts_cam")["head"] == str(mini_head)
    with pytest.raises(UsageError, match="is trained for ts_cam, got method cam: use ts_cam"):
        Localizer("mini", method="cam", head=mini_head)
    with pytest.raises(UsageError, match="lctr takes a head trained for it, got one trained for ts_cam"):
        Localizer("mini", method="lctr", method_options={"head": str(mini_head)})
    with pytest.raises(UsageError, match=r"ts_cam does not work on mini.* or give it a head trained on this tower"):
        Localizer("mini", method="ts_cam")
    with pytest.raises(ModelError, match="was trained on mini, got vit: use --model mini"):
        Localizer(tower("vit", GRID), head=mini_head)


def test_a_benchmark_takes_a_head(mini_head: Path, tmp_path: Path) -> None:
    """Its method beside the tower's own; the maps are the localizer's."""
    pytest.importorskip("pyarrow")
    root, out = wsol_folder(tmp_path / "wsol", 3), tmp_path / "out"
    # A closed head knows its own names only.
    (root / "synsets.csv").write_text("label,wnid,synset_words\n0,,red\n1,,green\n2,,blue\n")
    labels = root / "metadata/class_labels.txt"
    labels.write_text("".join(f"val/{number:03d}.jpg,{number}\n" for number in range(3)))
    flags = ("--dataset", "wsol", "--root", root, "--head", mini_head, "--out", out)
    succeeded("benchmark", "boxes", *flags, "--save-maps")
    numbers = json.loads((out / "summary.json").read_text())["settings"]
    beside = {"mini_centre_box", "mini_centre_gaussian"}  # of the tower without the head
    assert set(numbers) == {"mini_cam", "mini_ts_cam_head", *beside}
    assert numbers["mini_ts_cam_head"]["evaluated"] == 3
    localizer = Localizer("mini", head=mini_head, min_presence=0, text_cache=False)
    saved = np.load(out / "maps/mini_ts_cam_head/val/000.jpg.npy")
    np.testing.assert_allclose(saved, localizer(root / "val/000.jpg", ["red"]).maps[0], atol=1e-3)
    reason = refused("benchmark", "boxes", *flags, "--method", "cam")
    assert "is trained for ts_cam, not for cam: add ts_cam, or leave --head out" in reason
    assert "expected --head or --recipe, got" in refused("benchmark", "boxes", *flags, "--recipe", "fast")
