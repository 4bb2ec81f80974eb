"""Training: what it learns, what it survives, and what it reports."""

import csv
import dataclasses
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.signal import correlate2d
from torch import Tensor
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
from cliploc.find.heads import (
    HEADS,
    SAME_TOWER,
    HeadConfig,
    LctrHead,
    Seen,
    TsCamHead,
    load_head,
    look,
    read_config,
    save_head,
    tower_fingerprint,
)
from cliploc.find.prompts import parse
from cliploc.find.texts import embed
from cliploc.methods import methods
from cliploc.methods._infra.method import Context, TrainedHead
from cliploc.support.reporter import Reporter
from cliploc.towers import create
from tests.commands import begun, refused, succeeded
from tests.evaluate.samples import wsol_folder
from tests.methods.towers import QueryingVit, plain_forward, scenes, tiny
from tests.tiny import COLOURS, SIDE, TinyVit, seeded, tower

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


# --------------------------------------------------------- One training in a process of its own, for tests that kill it
class Fuse:
    """Kills its process, as `kill -9` does, when pictures of a phase are reported for the n-th time."""

    def __init__(self, label: str, at: int) -> None:
        self._label, self._left, self._now = label, at, ""

    def phase(self, label: str) -> None:
        self._now = label

    def images(self, _: int) -> None:
        if self._label and self._now.startswith(self._label):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def run_settings(method: str) -> TrainSettings:
    return TrainSettings(
        method=method, kind="open", epochs=4, batch_size=8, lr=0.01, held_out=0.25, augmentations=1, patience=4
    )


def main(root: str, out: str, method: str, label: str = "", at: str = "0") -> None:
    torch.set_num_threads(1)
    fuse = Fuse(label, int(at))
    reporter = Reporter(phase=fuse.phase, images=fuse.images)
    train(tower("vit", (5, 6)), read_folder(root), Path(out), run_settings(method), reporter=reporter)


# TS-CAM's and LCTR's trained layers against loops written from the equations; saving, and refusing another tower
MAP = (4, 5)
D, CHANNELS = 6, 3
CLASSES = (("red", "crimson"), ("green",), ("a zebra", "zebra"), ("blue",))


def config(method: str, kind: str, **changed: Any) -> HeadConfig:
    given = {"start": "random", "experts": 3, **changed}
    return HeadConfig(method, kind, CLASSES, CHANNELS, D, 7.0, "a tower", "vit", "no weights", **given)  # type: ignore[arg-type]


def head(method: str, kind: str, seed: int = 0, **changed: Any) -> Any:
    torch.manual_seed(seed)
    made = HEADS[method](config(method, kind, **changed))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval().requires_grad_(False)


def seen(dense: bool = False, seed: int = 3, grid: tuple[int, int] = MAP) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(2, *grid, generator=generator)
    unit = F.normalize(torch.randn(2, D, *grid, generator=generator), dim=1) if dense else None
    return Seen(torch.randn(2, CHANNELS, *grid, generator=generator), attention, unit)


def texts() -> Tensor:
    return F.normalize(torch.randn(len(CLASSES), D, generator=torch.Generator().manual_seed(5)), dim=1)


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


# ---------------------------------------------------------------------------------------- the equations, place by place
def conv3x3(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """`[C, h, w]`, `[O, C, 3, 3]` → `[O, h, w]`, with zeros around x."""
    sums = [sum(map(partial(correlate2d, mode="same"), x, of_output)) for of_output in kernel]
    return np.stack(sums) + (0 if bias is None else bias[:, None, None])


def semantic_maps(trained: Any, x: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """S of one picture, `[C_out, h, w]`."""
    w = {name: tensor.numpy().astype(float) for name, tensor in trained.state_dict().items()}
    if trained.method == "ts_cam":
        return conv3x3(x, w["conv.weight"], w["conv.bias"])
    u = conv3x3(x * (1 - attention), w["dig.weight"], w["dig.bias"])
    mean, largest = u.reshape(len(u), -1).mean(axis=1), u.reshape(len(u), -1).max(axis=1)
    z = w["fc_mean.weight"] @ mean + w["fc_mean.bias"] + w["fc_max.weight"] @ largest + w["fc_max.bias"]
    mixture = [1 / (1 + math.exp(-value)) for value in z]
    kernel = sum(m * expert for m, expert in zip(mixture, w["experts"], strict=True))
    return conv3x3(x, kernel, w["bias"])


def smoothed(trained: Any, maps: np.ndarray) -> np.ndarray:
    """LCTR's avgpool3×3 before the mean."""
    if trained.method == "ts_cam":
        return maps
    ninth = np.zeros((len(maps), len(maps), 3, 3))
    for c in range(len(maps)):
        ninth[c, c] = 1 / 9
    return conv3x3(maps, ninth, None)


METHODS = pytest.mark.parametrize("method", ["ts_cam", "lctr"])


@METHODS
@pytest.mark.parametrize("grid", [MAP, (1, 1), (1, 4), (7, 5)])
def test_the_maps_and_logits_of_a_closed_head(method: str, grid: tuple[int, int]) -> None:
    trained, features = head(method, "closed"), seen(grid=grid)
    maps, logits = trained.maps(features), trained(features)
    for b in range(2):
        expected = semantic_maps(trained, features.tokens[b].numpy(), features.attention[b].numpy())
        np.testing.assert_allclose(maps[b].numpy(), expected, rtol=1e-4, atol=1e-5)
        means = smoothed(trained, expected).reshape(len(CLASSES), -1).mean(axis=1)
        np.testing.assert_allclose(logits[b].numpy(), means, rtol=1e-4, atol=1e-5)


@METHODS
@pytest.mark.parametrize("start", ["random", "zero-shot"])
def test_the_maps_and_logits_of_an_open_head(method: str, start: str) -> None:
    trained = head(method, "open", start=start)
    features, text = seen(dense=start == "zero-shot"), texts()
    maps, logits = trained.maps(features), trained(features, text)
    for b in range(2):
        expected = semantic_maps(trained, features.tokens[b].numpy(), features.attention[b].numpy())
        if features.dense is not None:
            expected = expected + 7 * features.dense[b].numpy()
        np.testing.assert_allclose(maps[b].numpy(), expected, rtol=1e-4, atol=1e-5)
        spoken = np.stack([(g[:, None, None] * expected).sum(axis=0) for g in text.numpy()])  # [classes, h, w]
        means = smoothed(trained, spoken).reshape(len(CLASSES), -1).mean(axis=1)
        np.testing.assert_allclose(logits[b].numpy(), means, rtol=1e-4, atol=1e-5)


@METHODS
@pytest.mark.parametrize("kind", ["closed", "open"])
def test_gradients(method: str, kind: str) -> None:
    trained = head(method, kind, start="zero-shot").double().requires_grad_(True)
    features, text = seen(dense=kind == "open", grid=(3, 2)), None if kind == "closed" else texts().double()
    names, values = zip(*trained.named_parameters(), strict=True)

    def logits(tokens: Tensor, *parameters: Tensor) -> Tensor:
        dense = None if features.dense is None else features.dense.double()
        arguments = (replace(features, tokens=tokens, attention=features.attention.double(), dense=dense), text)
        return torch.func.functional_call(trained, dict(zip(names, parameters, strict=True)), arguments)

    tokens = features.tokens.double().requires_grad_(True)
    assert torch.autograd.gradcheck(logits, (tokens, *values))


# -------------------------------------------------------------------------------------------------------- on the towers
def head_on(backbone: Any, method: str, kind: str, start: str = "random") -> Any:
    channels = 16 if backbone.kind == "vit" else 24
    made = HEADS[method](
        HeadConfig(
            method, kind, CLASSES, channels, backbone.embedding_size, float(backbone.logit_scale), backbone.name,
            backbone.kind, backbone.weights_id, start,
        )  # type: ignore[arg-type]
    )  # fmt: skip
    if start == "random":
        torch.manual_seed(1)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return made.eval().requires_grad_(False)


def ctx_for(backbone: Any, method: str, options: dict[str, Any], words: list[tuple[str, ...]]) -> Context:
    needs, text = methods.get(method).needs(**options), backbone.encode_text([one[0] for one in words])
    trace = backbone.trace(scenes(), needs)
    return Context(scenes, text.expand(2, -1, -1), trace, backbone, words=[words, words])


@METHODS
@pytest.mark.parametrize("tower_kind", [TinyVit, QueryingVit])
def test_a_methods_map_is_attention_times_the_heads_maps(method: str, tower_kind: type[TinyVit]) -> None:
    backbone = tiny(tower_kind)
    trained = head_on(backbone, method, "closed")
    words = [("blue",), ("crimson",), ("a lamp",)]
    maps = methods.get(method).function(ctx_for(backbone, method, {"head": trained}, words), head=trained)
    for b, image in enumerate(scenes()):
        tokens, attention, pool, _ = plain_forward(backbone, image)
        looks = [weights[0].mean(dim=0) for weights in attention]  # each [T, T]
        rows = [look_[0] for look_ in looks]
        if pool is not None:  # its query looks at patches once
            rows = [torch.cat([torch.zeros(1), pool[0].mean(dim=0)[0]])] * len(looks)
        patches = tokens[-1][0, 1:]
        x = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = x.T.reshape(-1, 5, 6).detach().numpy()
        mean = (sum(rows) / len(rows))[1:].reshape(5, 6).detach()
        semantics = semantic_maps(trained, x, mean.numpy())
        if method == "ts_cam":
            where = mean * (1 if pool is not None else len(rows))
        else:
            reached = [(row[:, None] * look_)[:, 1:].mean(dim=0) for row, look_ in zip(rows, looks, strict=True)]
            where = (sum(reached) / len(reached)).reshape(5, 6).detach()
        np.testing.assert_allclose(maps[b, 0].numpy(), where.numpy() * semantics[3], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(maps[b, 1].numpy(), where.numpy() * semantics[0], rtol=1e-3, atol=1e-5)
        assert (maps[b, 2] == 0).all(), "no class of the head"


@METHODS
def test_an_open_head_begins_as_the_zero_shot_form(method: str) -> None:
    backbone = tiny()
    untrained = head_on(backbone, method, "open", start="zero-shot")
    words = [("red",), ("a lamp",)]
    function = methods.get(method).function
    ours = function(ctx_for(backbone, method, {"head": untrained}, words), head=untrained)
    zero_shot = function(ctx_for(backbone, method, {}, words))
    torch.testing.assert_close(ours, backbone.logit_scale * zero_shot)


@METHODS
def test_a_cnn_has_no_attention_and_needs_none(method: str) -> None:
    backbone = tower("gap_cnn")
    trained = head_on(backbone, method, "open")
    ctx = ctx_for(backbone, method, {"head": trained}, [("red",)])
    x = F.layer_norm(ctx.features.movedim(1, -1), (24,)).movedim(-1, 1)
    convolved = trained.convolve(Seen(x, torch.zeros(2, 5, 6)))  # nothing is erased
    expected = torch.einsum("bdhw,bpd->bphw", convolved, ctx.text)
    torch.testing.assert_close(methods.get(method).function(ctx, head=trained), expected)


def test_names_and_synonyms_mean_a_class() -> None:
    trained = head("ts_cam", "closed")
    assert isinstance(trained, TrainedHead)
    assert [trained.class_of(words) for words in [("Red",), ("CRIMSON",), ("x", "zebra"), ("lamp",)]] == [0, 0, 2, None]
    assert trained.unknown_reason(("x", "zebra")) is None
    assert "its 4 classes only" in trained.unknown_reason(("lamp",))
    assert head("ts_cam", "open").unknown_reason(("lamp",)) is None
    classes = (("crane", "bird"), ("bird",))
    trained = TsCamHead(dataclasses.replace(config("ts_cam", "closed"), classes=classes))
    assert trained.class_of(("bird",)) == 1, "a name wins over another class's synonym"


# ----------------------------------------------------------------------------------------------------- saved and loaded
@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Any, Path]:
    backbone = tiny()
    trained = head_on(backbone, "lctr", "open")
    save_head(tmp_path / "head.safetensors", trained, tower_fingerprint(backbone))
    return backbone, trained, tmp_path / "head.safetensors"


def test_a_saved_head_is_the_same_head(saved: Any) -> None:
    backbone, trained, path = saved
    loaded = load_head(path, backbone)
    assert loaded.config == trained.config == read_config(path)
    assert isinstance(loaded, LctrHead)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    told = LctrHead(dataclasses.replace(trained.config, training={"lr": 1.0}))
    told.load_state_dict(trained.state_dict())
    assert told.digest() == trained.digest(), "of what it computes, not of how it was trained"
    torch.nn.init.ones_(told.bias)
    assert told.digest() != trained.digest()
    ctx = ctx_for(backbone, "lctr", {"head": loaded}, [("red",)])
    features = look(ctx, attention=True, dense=False)
    assert torch.equal(loaded.maps(features), trained.maps(features))
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["cliploc_head"])["classes"] == [list(words) for words in CLASSES]


def test_a_head_of_another_tower_is_refused_by_name(saved: Any) -> None:
    _, _, path = saved
    other = tower("vit", (5, 6))
    other.name = "another"
    try:
        with pytest.raises(ModelError, match=r"head.safetensors was trained on vit, got another: use --model vit$"):
            load_head(path, other)
    finally:
        other.name = "vit"
    for another in (tower("vit", (5, 6), seed=9), TinyVit("vit", (5, 6), size=4)):
        with pytest.raises(ModelError, match="was trained on other weights of vit than these"):
            load_head(path, another)


def test_the_same_tower_in_another_precision_is_the_same(saved: Any) -> None:
    backbone, _, path = saved
    half = tower("vit", (5, 6)).bfloat16()
    assert half.weights_id != backbone.weights_id
    assert load_head(path, half).config.method == "lctr"
    exact, rounded = (tower_fingerprint(create("mini", precision=precision)) for precision in ("fp32", "bf16"))
    assert torch.cosine_similarity(exact, rounded, dim=0) > SAME_TOWER


def test_files_that_are_no_heads(saved: Any, tmp_path: Path) -> None:
    backbone, _, path = saved
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors, other = load_file(path), tmp_path / "other.safetensors"

    def described(**changed: Any) -> None:
        description = {**json.loads(metadata["cliploc_head"]), **changed}
        save_file(tensors, other, {"cliploc_head": json.dumps(description)})

    for make in (
        lambda: None,
        lambda: other.write_text("no head"),
        lambda: other.write_bytes(path.read_bytes()[:-100]),
        lambda: save_file({"x": torch.zeros(1)}, other),
        lambda: described(format=99),
        lambda: described(experts="many"),
    ):
        make()
        with pytest.raises(ModelError, match=r"^expected a trained head, but [^\n]*other[^\n]*cliploc train[^\n]*$"):
            load_head(other, backbone)
    for missing in ("head.experts", "tower.answer"):
        save_file({name: tensor for name, tensor in tensors.items() if name != missing}, other, metadata)
        with pytest.raises(ModelError, match="its weights do not fit its own description"):
            load_head(other, backbone)
