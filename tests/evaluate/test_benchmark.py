"""The benchmark's runner: what a row holds, and that neither a kill nor a fault loses, doubles or changes any."""

import csv
import json
import os
import random
import re
import shutil
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pyarrow")

import pyarrow.parquet as pq

from cliploc.errors import UsageError
from cliploc.evaluate.data import open_dataset
from cliploc.evaluate.metrics import JudgedMap, PxAP, all_numbers
from cliploc.evaluate.tasks.boxes.job import run_benchmark, unfit_for_setup
from cliploc.evaluate.tasks.evaluate import evaluate_folder
from cliploc.evaluate.tasks.measuring import read_masks
from cliploc.evaluate.tasks.rows import box_columns, schema_of
from cliploc.find import tasks
from cliploc.find.flow import Flow
from cliploc.images.geometry import iou_matrix
from cliploc.localizer import Localizer
from cliploc.methods import baselines
from cliploc.options import BENCHMARK
from cliploc.runs.plan import ModelSetup, expand_grid, shard_size
from cliploc.runs.store import FILE, rows_in
from cliploc.support.reporter import Reporter
from tests.commands import begun, cliploc_, create_once, refused, succeeded
from tests.evaluate import samples
from tests.evaluate.samples import dataset, wsol_folder
from tests.evaluate.test_benchmark_page import cells, section

pytestmark = pytest.mark.usefixtures("one_model")
SETUP = ModelSetup(BENCHMARK.but(batch_size=2, device="cpu"))
COUNT = 14


def changed(prompts: str = "default", **options: Any) -> ModelSetup:
    """The setup with other options."""
    return ModelSetup(SETUP.options.but(**options), prompts)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return wsol_folder(tmp_path_factory.mktemp("data") / "wsol", COUNT)


@pytest.fixture
def judged_here(monkeypatch):
    """Commands start no process that measures, and draw no report's figures."""
    monkeypatch.setattr("cliploc.evaluate.tasks.page.write_report", lambda *_, **__: None)
    with samples.judged_here():
        yield


def tex_lines(out):
    """The lines of a LaTeX table that have cells."""
    return [line for line in (out / "tables.tex").read_text().splitlines() if " & " in line]


def run(root, out, methods=("cam", "layer_cam"), *, setups=(SETUP,), data=None, **options):
    settings, _ = expand_grid(setups, methods, unfit_for_setup)
    return run_benchmark(data or dataset(root), setups, settings, out, **{"workers": 0, "shard": 4, **options})


def done_in(out):
    """The number of pictures whose rows are there."""
    try:
        with sqlite3.connect(f"file:{out / FILE}?mode=ro", uri=True) as opened:
            return opened.execute("SELECT count(*) FROM picture").fetchone()[0]
    except sqlite3.OperationalError:  # not yet there
        return 0


@pytest.fixture(scope="module")
def plain(root, tmp_path_factory):
    """A run that nothing happened to."""
    return run(root, tmp_path_factory.mktemp("plain"), save_maps=True)


# ------------------------------------------------------------------------------------------------------------ numbers
def test_the_numbers_are_those_of_evaluate_on_the_saved_maps_to_the_digit(root, plain, tmp_path):
    for name, numbers in plain.summary.items():
        predictions = tmp_path / f"{name}.csv"
        with predictions.open("w", newline="") as file:
            csv.writer(file).writerows(
                [row["sample"], *row["predictions"]] for row in rows_in(plain.out) if row["setting"] == name
            )
        for threshold, suffix in ((numbers["threshold"], ""), (None, "_oracle")):
            found = evaluate_folder(
                plain.out / "maps" / name, root / "metadata", threshold=threshold, predictions=predictions
            ).document
            for key in ("gt_known", "top1_loc", "top5_loc"):
                assert numbers[key + suffix] == found[key], (name, key + suffix)
            shared = ("max_box_acc", "max_box_acc_iou30", "max_box_acc_iou50", "max_box_acc_iou70", "max_box_acc_v2")
            for key in (*shared, "top1_cls", "top5_cls", "best_threshold", "images", "evaluated", "with_predictions"):
                assert numbers[key] == found[key], (name, key)
            assert numbers["confidence_95"]["max_box_acc_v2"] == found["confidence_95"]["max_box_acc_v2"]
        assert numbers["max_box_acc"] == numbers["gt_known_oracle"]
        for path in (plain.out / "maps" / name).rglob("*.npy"):  # the WSOL evaluation itself refuses other types
            assert np.load(path).dtype == float
    assert 0 < plain.summary["mini_cam"]["gt_known"] <= 100
    assert plain.summary["mini_cam"]["max_box_acc_v2"] != plain.summary["mini_layer_cam"]["max_box_acc_v2"]


def test_maps_of_a_sample_are_evaluated_on_the_same_sample(root, tmp_path):
    numbers = run(root, tmp_path, ["cam"], data=open_dataset("wsol", root, sample=5), save_maps=True).summary[
        "mini_cam"
    ]
    evaluate = ("evaluate", "boxes", "--maps", tmp_path / "maps/mini_cam", "--json")
    found = json.loads(succeeded(*evaluate, "--dataset", "wsol", "--root", root, "--sample", 5).out)
    assert (found["images"], found["evaluated"], found["failed"]) == (5, 5, [])
    assert found["max_box_acc_v2"] == pytest.approx(numbers["max_box_acc_v2"], rel=1e-6)
    every = cliploc_(*evaluate, "--metadata", root / "metadata")
    assert (every.code, len(json.loads(every.out)["failed"])) == (1, COUNT - 5)


def test_a_row_says_what_the_localizer_says_in_original_pixels(root, plain):
    samples = dataset(root)
    by_id = {one.id: one for one in samples.samples}
    localizer_ = Localizer(create_once(), method="cam", min_presence=0, text_cache=False, batch_size=2)
    names = [one.name for one in samples.classes]
    checked = [row for row in rows_in(plain.out) if row["setting"] == "mini_cam"]
    assert [row["sample"] for row in checked] == [one.id for one in samples.samples]
    for row in checked:
        sample = by_id[row["sample"]]
        found = localizer_(sample.path, [names[sample.label]])
        assert found.image.size != sample.size_wh  # the files are stretched
        stretch = np.array([*sample.size_wh] * 2) / np.array([*found.image.size] * 2)
        np.testing.assert_allclose(row["boxes"], found.boxes.xyxy * stretch, rtol=1e-4, atol=0.05)
        np.testing.assert_allclose(row["box_scores"], found.boxes.score, rtol=1e-4)
        assert row["score"] == pytest.approx(float(found.scores[0]), abs=1e-5)
        assert row["presence"] == pytest.approx(found.presence_of(0), abs=1e-4)
        ranked = [one.name for one in localizer_.classify(sample.path, names)]
        assert [names[label] for label in row["predictions"]] == ranked
        assert (row["width"], row["height"], row["n_boxes"]) == (*sample.size_wh, len(sample.boxes_xyxy))
        np.testing.assert_array_equal(row["true_boxes"], sample.boxes_xyxy)
        # Holes have contours too, so that the best of them may be better than the best region.
        overlaps = iou_matrix(row["boxes"], sample.boxes_xyxy)
        assert overlaps.max() - 0.04 <= row["best_iou"] <= 1
        assert row["iou"] <= row["best_iou"]
        level = int(0.3 * row["highest"])
        assert row["vl_hit"] == bool(np.unpackbits(np.frombuffer(row["hits_every_50"], np.uint8))[level])
        assert np.frombuffer(row["thumb"], np.uint8).reshape(28, 28).max() > 200


@pytest.mark.parametrize("known", [["cat", "dog"], []])
def test_names_that_the_model_does_not_know_are_never_predicted(root, tmp_path, known):
    other = shutil.copytree(root, tmp_path / "data")
    names = [*known, *("xyzzyq", "qwrtzp", "vbnmkl", "zzkkpf", "plooqx", "grmblw", "hjklzz", "wqzxvb")]
    lines = [f"{label},,{name}" for label, name in enumerate(names)]
    (other / "synsets.csv").write_text("\n".join(["label,wnid,synset_words", *lines]) + "\n")
    result = run(other, tmp_path / "out", ["cam"], data=open_dataset("wsol", other, limit=3))
    own = list(range(len(known))) or None
    assert [row["predictions"] and sorted(row["predictions"]) for row in rows_in(result.out)] == [own] * 3
    numbers = result.summary["mini_cam"]
    assert (numbers["top5_cls"], numbers["with_predictions"]) == (None, 3 if known else 0)


def test_methods_of_several_options_and_thresholds_share_a_forward_pass(root, tmp_path, monkeypatch):
    passes = []
    plain = Flow.compute
    monkeypatch.setattr(Flow, "compute", lambda *a, **k: passes.append(len(a[1])) or plain(*a, **k))
    methods = ("grad_cam", "grad_cam(block=-2)", "grad_cam(threshold=0.6)")
    result = run(root, tmp_path, methods, setups=(SETUP, changed("name-only", templates=("{}",))))
    assert sum(passes) == 2 * COUNT
    first, other, higher = (f"mini_grad_cam{words}" for words in ("", "-block=-2", "-threshold=0.6"))
    assert [*result.summary] == [one + words for words in ("", "_name-only") for one in (first, other, higher)]
    numbers = result.summary
    assert [numbers[name]["threshold"] for name in (first, other, higher)] == [0.1, 0.1, 0.6]
    energies = [numbers[name]["energy_in_boxes"] for name in (first, other, higher)]
    assert energies[0] == energies[2] != energies[1]
    assert numbers[higher]["mean_best_iou"] != numbers[first]["mean_best_iou"]
    assert [one["options"]["block"] for one in result.manifest["settings"]][:3] == [-1, -2, -1]


def test_settings_that_are_added_are_computed_alone(root, plain, tmp_path, monkeypatch):
    out, computed, compute = shutil.copytree(plain.out, tmp_path / "out"), [], Localizer.run
    monkeypatch.setattr(Localizer, "run", lambda *a, **k: computed.append([*a[2]]) or compute(*a, **k))
    more = run(root, out, ("xgrad_cam", "cam"), save_maps=True)
    assert computed == [["xgrad_cam"]]
    assert more.resumed
    fresh = run(root, tmp_path / "fresh", ("cam", "layer_cam", "xgrad_cam"), save_maps=True)
    assert more.summary == fresh.summary
    assert list(rows_in(out)) == list(rows_in(fresh.out))
    with sqlite3.connect(out / FILE) as opened:
        opened.execute("DELETE FROM row WHERE setting = 'mini_layer_cam' AND sample = 'val/001.jpg'")
    with pytest.raises(UsageError, match="mini_layer_cam is not finished: repeat its command"):
        run(root, out, ("cam",), save_maps=True)


def test_only_a_split_that_may_tune_gives_a_threshold_that_is_no_oracle(root, tmp_path, plain):
    tuned = run(root, tmp_path, ["cam"], data=dataset(root, "tune"))
    assert tuned.summary["mini_cam"]["best_threshold_is_an_oracle"] is False
    assert "may tune" in " ".join(tuned.legend())
    assert plain.summary["mini_cam"]["best_threshold_is_an_oracle"] is True
    assert "an oracle" in " ".join(plain.legend())
    assert plain.summary["mini_cam"]["threshold_chosen_on_these_images"] is False


# ------------------------------------------------------------------------------------------------- stopped and resumed
def run_slowly(root: Path, out: Path, threads: int, workers: int) -> None:
    torch.set_num_threads(threads)
    slowly = Reporter(images=lambda _: time.sleep(0.15))  # so that a fast machine is not done before it is killed
    run(root, out, workers=workers, save_maps=True, reporter=slowly)


def test_killed_at_random_moments_it_goes_on_to_the_same_bits(root, plain, tmp_path):
    """A process, with one that measures or without, killed without warning: after a shard, in the middle of one."""
    out = tmp_path / "out"
    chance = random.Random(5)
    kills, counts = 0, [0]
    threads = torch.get_num_threads()  # sums in another order may end in another bit
    while True:
        process = begun(run_slowly, root, out, threads, kills % 2)
        try:
            deadline = time.monotonic() + 300
            wait_for = counts[-1] + 1 if kills < 3 else 10**6
            while process.is_alive() and done_in(out) < wait_for and time.monotonic() < deadline:
                time.sleep(0.01)
            if not process.is_alive():
                break
            time.sleep(chance.random() * 0.2)
        finally:
            process.kill()  # SIGKILL
            process.join()
        kills += 1
        counts.append(done_in(out))
    assert process.exitcode == 0
    assert kills >= 2, counts
    for path in sorted(one for one in plain.out.rglob("*.*") if one.suffix in (".npy", ".parquet", ".json")):
        if path.name != "manifest.json":
            assert path.read_bytes() == (out / path.relative_to(plain.out)).read_bytes(), path
    assert list(rows_in(out)) == list(rows_in(plain.out))
    assert len(json.loads((out / "manifest.json").read_text())["sessions"]) == kills + 1


def test_what_is_there_is_not_done_again(root, plain, tmp_path):
    out = shutil.copytree(plain.out, tmp_path / "copy")
    again = run(root, out, save_maps=True)
    assert (again.computed, again.resumed) == (0, True)
    assert again.summary == plain.summary
    with sqlite3.connect(out / FILE) as opened:  # as the page says; SQLite's own command does not enforce keys
        opened.execute("DELETE FROM picture WHERE sample = 'val/005.jpg'")
    again = run(root, out, save_maps=True)
    assert (again.computed, again.summary) == (1, plain.summary)


def test_the_table_of_rows_is_the_same_in_sqlite_and_in_parquet(plain):
    assert pq.read_table(plain.out / "rows.parquet").to_pylist() == list(rows_in(plain.out))
    assert pq.read_schema(plain.out / "rows.parquet").equals(schema_of(box_columns()))


def test_pictures_replaced_under_their_names_are_computed_anew_and_said(root, plain, tmp_path):
    """Also one whose times are as before."""
    data, out = tmp_path / "wsol", tmp_path / "out"
    shutil.copytree(root, data)
    shutil.copytree(plain.out, out)
    for path in (data / "val").iterdir():
        path.touch()
    assert run(data, out, save_maps=True).computed == 0
    old = (data / "val/005.jpg").stat()
    for name in ("005", "009"):
        (data / f"val/{name}.jpg").write_bytes((data / "val/006.jpg").read_bytes())
    os.utime(data / "val/005.jpg", ns=(old.st_atime_ns, old.st_mtime_ns))
    said = []
    again = run(data, out, save_maps=True, reporter=Reporter(note=said.append))
    assert again.computed == 2
    replaced = "replaced since they were computed: 2 pictures (val/005.jpg, val/009.jpg)"
    assert said == [f"{replaced}; the rows of 8 computed again"]
    fresh = run(data, tmp_path / "fresh", save_maps=True)
    assert again.summary == fresh.summary
    assert list(rows_in(out)) == list(rows_in(fresh.out))
    assert run(data, out, save_maps=True).computed == 0


def test_other_samples_and_other_folders_are_refused(root, plain, tmp_path):
    fewer = open_dataset("wsol", root, limit=COUNT - 1)
    with pytest.raises(UsageError, match=r"dataset\.limit: only asked for\)"):
        run(root, plain.out, data=fewer, selection={"limit": COUNT - 1}, save_maps=True)
    out = shutil.copytree(plain.out, tmp_path / "out")
    (out / FILE).unlink()
    with pytest.raises(UsageError, match=r"manifest\.json without run\.sqlite, made by cliploc 0\.2"):
        run(root, out)
    (out / "manifest.json").unlink()
    with pytest.raises(UsageError, match=r"holds summary\.json, rows\.parquet, not written by this run"):
        run(root, out)


# -------------------------------------------------------------------------------------------------------------- faults
def test_a_broken_picture_is_a_failed_row_and_changes_no_other(root, plain, tmp_path):
    broken = shutil.copytree(root, tmp_path / "data")
    for name in ("val/003.jpg", "val/006.jpg", "val/007.jpg", "val/013.jpg"):
        (broken / name).write_bytes((broken / name).read_bytes()[:2000])
    samples = tuple(replace(one, path=broken / one.path.relative_to(root)) for one in dataset(root).samples)
    result = run(root, tmp_path / "out", data=replace(dataset(root), samples=samples))
    assert sorted(result.failed) == ["val/003.jpg", "val/006.jpg", "val/007.jpg", "val/013.jpg"]
    assert "003.jpg: damaged" in result.failed["val/003.jpg"]
    numbers = result.summary["mini_cam"]
    assert (numbers["images"], numbers["evaluated"], len(numbers["failed"])) == (COUNT, COUNT - 4, 4)
    good = {(row["sample"], row["setting"]): row for row in rows_in(plain.out)}
    seen = list(rows_in(result.out))
    assert len(seen) == 2 * COUNT
    for row in seen:
        if row["sample"] in result.failed:
            assert (row["status"], row["predictions"], row["highest"]) == ("failed", None, None)
        else:
            # A batch of one instead of two may differ by rounding, and by no more.
            assert row["hits_largest_50"] is not None
            assert row["predictions"] == good[row["sample"], row["setting"]]["predictions"]
            assert row["score"] == pytest.approx(good[row["sample"], row["setting"]]["score"], abs=1e-5)


def test_a_batch_that_does_not_fit_the_memory_is_halved_and_said(root, plain, tmp_path, monkeypatch):
    compute = Flow.compute

    def narrow(self, batch, *rest, **more):
        if len(batch) > 1:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes")
        return compute(self, batch, *rest, **more)

    monkeypatch.setattr(Flow, "compute", narrow)
    said = []
    result = run(root, tmp_path, reporter=Reporter(note=said.append))
    assert said == ["mini: not enough memory for a batch of 2 pictures, done in halves"]
    assert result.notes == tuple(said)
    assert not result.failed
    for name, numbers in result.summary.items():
        assert numbers["gt_known"] == pytest.approx(plain.summary[name]["gt_known"], abs=8)


def test_a_method_that_gives_no_numbers_fails_alone_and_by_name(root, plain, tmp_path, monkeypatch):
    find, first = tasks.find, []

    def spoilt(spec):
        method = find(spec)
        if spec != "layer_cam":
            return method

        def function(ctx, **options):
            first.append(ctx.images[0])
            spoilt = torch.tensor([bool((image == first[0]).all()) for image in ctx.images])
            return method.function(ctx, **options).masked_fill(spoilt[:, None, None, None], float("nan"))

        return replace(method, function=function)

    monkeypatch.setattr(tasks, "find", spoilt)
    result = run(root, tmp_path)
    lost = {one["sample"] for one in result.summary["mini_layer_cam"]["failed"]}
    assert lost == {"val/000.jpg"}  # the others of its batch are done alone
    assert "gave a map that is not a number" in result.failed["val/000.jpg"]
    assert result.summary["mini_cam"] == plain.summary["mini_cam"]
    batch = {f"val/{number:03d}.jpg" for number in range(4)}
    good = [row for row in rows_in(plain.out) if row["sample"] not in batch]
    assert [row for row in rows_in(tmp_path) if row["sample"] not in batch] == good


# ---------------------------------------------------------------------------------------------------------------- grid
def test_ids_say_what_tells_settings_apart_and_misfits_are_left_out():
    setups = [
        changed(model="mini"),
        changed("a photo of a {}.", model="RN50", pretrained="openai", templates=("a photo of a {}.",)),
        changed(model="ViT-B-32", pretrained="openai"),
        changed(model="ViT-B-32", pretrained="laion2b_s34b_b79k"),
    ]
    settings, left_out = expand_grid(setups, ["cam", "gem", "cam(threshold=0.5)"], unfit_for_setup)
    ids = [one.id for one in settings]
    assert len(set(ids)) == len(ids) == 6
    assert "RN50_openai_cam_a-photo-of-a" in ids
    assert "mini_cam-threshold=0.5" in ids
    assert "ViT-B-32_laion2b_s34b_b79k_gem" in ids
    assert left_out[0].startswith("gem does not work on mini, a cnn tower")
    with pytest.raises(UsageError, match="gem does not work on mini"):
        expand_grid(setups[:1], ["gem"], unfit_for_setup)
    with pytest.raises(UsageError, match="expected each method once, got cam twice"):
        expand_grid(setups, ["cam", "cam"], unfit_for_setup)
    assert [shard_size(batch) for batch in (1, 16, 12, 64)] == [32, 32, 36, 64]


def test_masks_are_read_as_the_wsol_evaluation_reads_them_and_give_pxap(root, tmp_path):
    generator = np.random.default_rng(1)
    masks = {name: (generator.random((61, 333)) < 0.3).astype(np.uint8) * 255 for name in ("one", "two", "ignore")}
    for name, mask in masks.items():
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    sample = dataset(root).samples[0]
    paths = {name: tmp_path / f"{name}.png" for name in masks}
    both, none = (paths["one"], paths["two"]), np.zeros((0, 4), np.float32)
    sample = replace(sample, boxes_xyxy=none, masks=both, ignore=paths["ignore"])
    true, ignore = read_masks(sample)
    small = {name: cv2.resize(mask, (224, 224), interpolation=cv2.INTER_NEAREST) > 0 for name, mask in masks.items()}
    np.testing.assert_array_equal(true, small["one"] | small["two"])
    np.testing.assert_array_equal(ignore, small["ignore"])
    given = replace(dataset(root), samples=(sample, replace(sample, id="other", masks=(tmp_path / "no.png",))))
    result = run(root, tmp_path / "out", ["cam"], data=given, save_maps=True)
    metric = PxAP()
    heat = np.load(tmp_path / "out/maps/mini_cam" / f"{sample.id}.npy")
    judged = JudgedMap(sample.id, heat, sample.boxes_xyxy, sample.size_wh, true, ignore)
    metric.add(sample.id, metric.measure(judged), None, None)
    assert result.summary["mini_cam"]["pxap"] == 100 * metric.summarise(False).scores["pxap"].value
    assert "gt_known" not in result.summary["mini_cam"]
    assert "no.png: no such file: check the path" in result.failed["other"]
    assert result.table()[0] == ("setting", "PxAP")


# -------------------------------------------------------------------------------------------------------- command line
def test_the_command_prints_a_narrow_table_writes_the_report_and_goes_on(root, tmp_path):
    arguments = ("benchmark", "boxes", "--dataset", "wsol", "--root", root, "--method=cam,layer_cam", "--batch-size=4")
    result = succeeded(*arguments, "--out", tmp_path, "--workers", 1)
    lines = result.out.splitlines()
    titles = ["setting", "GT-known", "at", "τ", "Top-1", "Top-5", "MaxBoxAcc", "at", "τ", "V2"]
    assert lines[0].split() == titles
    ids = ["mini_cam", "mini_layer_cam", "mini_centre_box", "mini_centre_gaussian"]
    assert [line.split()[0] for line in lines[1:5]] == ids
    assert all(len(line) <= 80 for line in lines)
    assert f"{COUNT} of {COUNT} samples × 4 settings done" in result.err
    assert result.err.endswith(f"\nnext: open {tmp_path / 'report.html'}\n")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    titles, *rows = cells(section(page, "numbers"))
    summary = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert sorted(row[0] for row in rows) == sorted(ids)
    assert "The boxes of baselines are fixed beforehand" in page
    for row in rows:
        numbers = summary[row[0]]
        for key in ("gt_known", "top1_loc", "max_box_acc_v2"):
            low, high = numbers["confidence_95"][key]
            shown = row[titles.index(all_numbers()[key].title)]
            assert shown == f"{numbers[key]:.2f} {low:.1f}–{high:.1f}", (row[0], key)
    again = succeeded(*arguments, "--out", tmp_path, "--json", "--columns", "max_box_acc,pointing_game")
    titles, *rows = [line.removesuffix(r" \\").split(" & ") for line in tex_lines(tmp_path)]
    assert titles == ["setting", *(all_numbers()[key].title for key in ("max_box_acc", "pointing_game"))]
    assert [row[0].replace("\\", "") for row in rows] == ids
    best = max(numbers["max_box_acc"] for numbers in summary.values())
    assert rf"\textbf{{{best:.2f}}}" in [row[1] for row in rows]
    for name in ("summary.json", "tables.csv"):
        assert not re.search(r"\.\d{12}", (tmp_path / name).read_text()), name
    assert json.loads(again.out) == json.loads((tmp_path / "summary.json").read_text())
    assert "resumed" in again.err
    assert "next:" not in again.err
    assert "flip: false there, true asked for" in refused(*arguments, "--out", tmp_path, "--flip")


@pytest.mark.usefixtures("judged_here")
def test_a_broken_picture_makes_the_exit_code_1(root, tmp_path):
    """Methods one by one, and no baselines."""
    broken = shutil.copytree(root, tmp_path / "data")
    whole = (broken / "val/005.jpg").read_bytes()
    (broken / "val/005.jpg").write_bytes(whole[: len(whole) // 2])
    arguments = ("benchmark", "boxes", "--dataset", "wsol", "--root", broken, "--batch-size", 4, "--limit", 8)
    arguments = (*arguments, "--method", "cam", "--method", "layer_cam", "--no-baselines")
    result = cliploc_(*arguments, "--out", tmp_path / "out", "--json")
    assert result.code == 1, result.err
    assert "failed: val/005.jpg: " in result.err
    evaluated = {name: one["evaluated"] for name, one in json.loads(result.out)["settings"].items()}
    assert evaluated == {"mini_cam": 7, "mini_layer_cam": 7}
    (broken / "val/005.jpg").unlink()
    result = cliploc_(*arguments, "--out", tmp_path / "other")
    assert result.code == 1, result.err
    assert "missing picture: val/005.jpg: " in result.err


def test_baselines_stand_once_for_each_model_out_of_the_same_passes():
    setups = [SETUP, replace(SETUP, prompts="other"), ModelSetup(SETUP.options.but(model="mini-vit"))]
    given = (setups, ["maskclip", "cam", "centre_box"], unfit_for_setup)
    settings, _ = expand_grid(*given, baselines=baselines())
    plain, _ = expand_grid(*given)
    added = [one for one in settings if one not in plain]
    assert [(one.setup, one.method) for one in added] == [(0, "centre_gaussian"), (2, "centre_gaussian")]
    assert {one.setup for one in settings} == {one.setup for one in plain}, "a forward pass of their own"
    with_head = replace(SETUP, options=SETUP.options.but(head="head.safetensors"))  # is only for the head's method
    settings, _ = expand_grid([with_head, SETUP], ["cam"], lambda *_: None, baselines=["centre_box"])
    assert [(one.setup, one.method) for one in settings] == [(0, "cam"), (1, "cam"), (1, "centre_box")]


def test_the_document_explains_every_column_and_number(plain):
    documents = Path(__file__).parents[2] / "docs"
    explained = (documents / "benchmark.md").read_text()
    for column in box_columns():
        assert f"`{column}`" in explained or f"`_{column.rsplit('_')[-1]}`" in explained, column
    for key in plain.summary["mini_cam"]:
        assert (
            f"`{key}`" in explained
            or f"`_{key.rsplit('_')[-1]}`" in explained
            or key == "threshold_chosen_on_these_images"
        )
