import base64
import csv
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cliploc.errors import UsageError
from cliploc.evaluate.metrics import TAUS, MaxBoxAcc, all_numbers
from cliploc.evaluate.tasks.boxes.data import MISSES, BenchmarkRun, miss_kind, read_run, wilson
from cliploc.evaluate.tasks.boxes.page import class_bars
from cliploc.evaluate.tasks.page import write_report
from cliploc.evaluate.tasks.report import SettingResult
from cliploc.runs.evaluation import open_run, rows_in
from tests.html_reader import CLOSING, IMAGE, Reader

from .benchmark_folder import CLASSES, WNIDS, make_folder

EVIL = '<script>alert("x")</script> & co | `_'
FILES = ("report.html", "tables.csv", "tables.md")
METHODS = ("cam", "grad_cam", "layer_cam")
Made = tuple[Path, dict[str, Any]]  # a folder and its summary


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run of three methods with one broken sample, and its report; its summary."""
    home = tmp_path_factory.mktemp("a benchmark")
    summary = make_folder(home / "out", home / "root", samples=40, methods=METHODS, failed=[3])
    write_report(home / "out")
    return home / "out", summary


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports whose figures nobody looks at: matplotlib takes longer than all the rest."""
    monkeypatch.setattr("cliploc.evaluate.tasks.figures._svg", lambda *_: "<svg></svg>")


@pytest.fixture(scope="module")
def page(made: Made) -> str:
    return (made[0] / "report.html").read_text(encoding="utf-8")


def section(page: str, name: str) -> str:
    return page.split(f'<section id="{name}"')[1].split("</section>")[0]


def cells(html: str) -> list[list[str]]:
    rows = [re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.S) for row in re.findall(r"<tr>.*?</tr>", html, re.S)]
    return [[Reader(cell).text for cell in row] for row in rows]


# -------------------------------------------------------------------------------------------------------- the numbers
def test_all_tables_have_the_numbers_of_the_summary(made: Made, page: str) -> None:
    out, summary = made
    lines = {row["setting"]: row for row in csv.DictReader(io.StringIO((out / "tables.csv").read_text()))}
    in_page = {row[0]: row for row in cells(section(page, "numbers"))}
    markdown = (out / "tables.md").read_text().split("## All settings")[1]
    for one, numbers in summary.items():
        method = one.removeprefix("mini_")
        in_markdown = next(
            line for line in markdown.splitlines() if line.startswith(f"| {method} ".replace("_", r"\_"))
        )
        for key in all_numbers():
            if numbers.get(key) is None:
                assert not lines[one][key]
                continue
            low, high = numbers["confidence_95"][key]
            assert [float(lines[one][name]) for name in (key, f"{key}_low", f"{key}_high")] == [numbers[key], low, high]
            title = all_numbers()[key].title
            column = in_page["setting"].index(title)
            assert in_page[method][column] == f"{numbers[key]:.2f} {low:.1f}–{high:.1f}"
            assert f"| {numbers[key]:.2f} ({low:.1f}–{high:.1f}) |" in in_markdown
        assert float(lines[one]["best_threshold"]) == numbers["best_threshold"]
        assert lines[one]["evaluated"] == "39"
        assert lines[one]["failed"] == "1"


def test_hits_and_curves_are_those_of_the_metrics(made: Made) -> None:
    out, summary = made
    run: BenchmarkRun = read_run(out)
    assert {"thumb", "boxes", "true_boxes", "hits_largest_50"}.isdisjoint(run.rows.columns), "in memory without maps"
    assert len(run.rows) == 120
    for one in run.settings:
        metric = MaxBoxAcc()
        for row in rows_in(out):
            if row["setting"] == one.id and row["status"] == "ok":
                metric.add(row["sample"], row, row["label"], None)
        result = metric.compute()
        assert one.curve is not None
        np.testing.assert_allclose(one.curve, 100 * result.curve)
        assert TAUS[int(one.curve.argmax())] == summary[one.id]["best_threshold"]
        assert 100 * run.of(one)["hit"].mean() == pytest.approx(summary[one.id]["gt_known"])


@pytest.mark.parametrize("key", ["max_box_acc", "pxap"])
def test_a_setting_of_0_is_ranked_before_one_without_a_number(key: str) -> None:
    numbers = {"missing": None, "nothing right": 0.0, "a little": 0.5, "much": 50.0}
    settings = [SettingResult(name, name, {}, {key: value}, i) for i, (name, value) in enumerate(numbers.items())]
    assert [one.id for one in BenchmarkRun(Path(), {}, tuple(settings), None).ranked] == [*numbers][::-1]


def test_hits_and_misses_by_size_and_number_add_up_and_kinds_of_misses_are_told(made: Made, page: str) -> None:
    rows = [row for row in cells(section(page, "objects")) if row[1:2] in (["right"], ["wrong"])]
    assert len(rows) == 2 * len(METHODS)
    for method in METHODS:
        right, wrong = ([int(cell) for cell in row[2:]] for row in rows if row[0] == method)
        assert sum(right[:4] + wrong[:4]) == sum(right[4:] + wrong[4:]) == 39
        sizes = [a + b for a, b in zip(right[:4], wrong[:4], strict=True)]
        assert max(sizes) - min(sizes) <= 2, "quarters"
    run = read_run(made[0])
    worst = run.ranked[-1]
    misses = run.of(worst)["miss"].value_counts().to_dict()
    assert misses.pop("") == run.of(worst)["hit"].sum()
    bar = re.findall(r'aria-label="(right [^"]*)"', section(page, "objects"))[-1]
    for kind, amount in misses.items():
        assert f"{MISSES[kind][0]} {100 * amount / 39:.1f} %" in bar


@pytest.mark.parametrize(
    ("boxes", "kind"),
    [
        ([], "none"),
        ([[0, 0, 3, 10]], "part"),
        ([[0, 0, 20, 20]], "more"),
        ([[0, 0, 35, 10]], "several"),
        ([[50, 50, 60, 60]], "elsewhere"),
        ([[50, 50, 51, 51], [0, 0, 20, 20]], "more"),  # the largest counts
    ],
)
def test_kinds_of_misses(boxes: list[list[float]], kind: str) -> None:
    assert miss_kind(boxes, [[0, 0, 10, 10], [30, 0, 34, 10]]) == kind


def test_wilson_interval() -> None:
    # Brown, Cai & DasGupta 2001: the ends solve |p − x/n| = z √(p(1 − p)/n).
    for hits, n in ((0, 3), (2, 3), (5, 5), (30, 100)):
        for end in (edge / 100 for edge in wilson(hits, n)):
            assert abs(end - hits / n) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / n), abs=1e-9)


# ------------------------------------------------------------------------------------------------------- thresholds
@pytest.mark.usefixtures("undrawn")
def test_the_accuracy_at_the_own_threshold_is_gt_known(tmp_path: Path) -> None:
    """Between two of the thresholds of the curve, either of which would be another level of the maps."""
    summary = make_folder(tmp_path / "out", tmp_path / "root", samples=8, methods=("cam",), threshold=0.1646)
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    titles, row = cells(section(page, "tau"))
    [numbers] = summary.values()
    assert row[titles.index("at own τ")] == f"{numbers['gt_known']:.2f}"


# ------------------------------------------------------------------------------------------------------- a page as such
def test_the_page_is_self_contained_and_whole(page: str) -> None:
    reader = Reader(re.sub(r"<(image|use|rect|path|circle)([^>]*?)/?>", r"<img\2>", page))
    assert not reader.open, "every tag is closed"
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), "every id once"
    links = [a[key] or "" for _, a in reader.tags for key in ("href", "src", "srcset") if key in a]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(link.startswith(("#", "data:image/")) for link in links)
    assert "@import" not in page
    assert "url(" not in page
    tables = [attributes for tag, attributes in reader.tags if (attributes.get("class") or "").startswith("scroll")]
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in tables), "a keyboard can scroll every table"
    assert all(a["aria-label"] for tag, a in reader.tags if a.get("role") == "img")
    assert all(a["alt"] for tag, a in reader.tags if tag == "img" and "src" in a)


def test_boxes_and_maps_lie_where_the_rows_say(made: Made, page: str) -> None:
    run = read_run(made[0])
    best = run.ranked[0]
    rows = run.of(best).sort_values("iou", ascending=False)
    sample = rows["sample"].iloc[0]
    row = run.pictures({sample})[sample, best.id]
    first = section(page, "pictures").split("<h4>Best</h4>")[1].split("</figure>")[0]
    x0, y0, x1, y1 = row.true_boxes[0]
    assert f'<rect class="true" x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"/>' in first
    x0, y0, x1, y1 = row.boxes[0]
    assert f'<rect class="found" x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"/>' in first
    data = re.search(r'class="heat" [^>]*base64,([^"]+)"', first)
    assert data
    heat = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("RGBA")).astype(int)
    thumb = np.frombuffer(row.thumb, np.uint8).reshape(28, 28)
    order = thumb.ravel().argsort(kind="stable")
    light = (heat[..., :3] @ (0.2126, 0.7152, 0.0722) * heat[..., 3]).ravel()[order] / 255  # on black
    assert (np.diff(light) >= -1).all(), "the hotter, the lighter"
    assert light[-1] > light[0] + 60
    assert f"IoU {row.iou:.2f}" in first


@pytest.mark.usefixtures("undrawn")
def test_cropped_pictures_keep_their_maps_in_place(tmp_path: Path) -> None:
    make_folder(tmp_path / "out", tmp_path / "root", samples=8, methods=["cam"])
    with open_run(tmp_path / "out") as run:
        about = run["manifest"]
        about["settings"]["mini_cam"]["resize"] = "crop"
        run["manifest"] = about
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    # The centre 120×120 of 160×120.
    x, y, width, height = map(
        float, re.findall(r'class="heat" x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"', page)[0]
    )
    assert (x, y, width, height) == pytest.approx((20, 0, 120, 120), abs=0.5)


def test_best_worst_and_borderline(made: Made, page: str) -> None:
    run = read_run(made[0])
    for one in run.ranked:
        html = section(page, "pictures").split(f"<summary><h3>{one.label}</h3>")[1].split("</details>")[0]
        parts = html.split("<h4>")[1:]
        ious = [[float(iou) for iou in re.findall(r"[✓✗] IoU (\d\.\d\d)", part)] for part in parts]
        assert [part.split("<")[0] for part in parts] == ["Best", "Borderline", "Worst"]
        assert all(len(found) == 10 for found in ious)
        all_ious = run.of(one)["iou"]
        assert ious[0][0] == pytest.approx(all_ious.max(), abs=0.005)
        assert ious[2][0] == pytest.approx(all_ious.min(), abs=0.005)
        assert abs(ious[1][0] - 0.5) == pytest.approx((all_ious - 0.5).abs().min(), abs=0.005)


def test_the_same_folder_gives_the_same_bytes_whatever_the_users_own_style(made: Made) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = [(made[0] / name).read_bytes() for name in FILES]
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red", "font.family": "monospace"}):
        write_report(made[0])
        assert matplotlib.rcParams["lines.linewidth"] == 9, "and leave it alone"
    assert [(made[0] / name).read_bytes() for name in FILES] == before


def test_the_ten_classes_with_reasons_numbers_and_confusion(made: Made, page: str) -> None:
    html = section(page, "ten")
    run = read_run(made[0])
    for label, name in enumerate(CLASSES):
        part = html.split(f'<article class="study">\n<h3>{name} ')[1].split("</article>")[0]
        assert f"why {name}" in part
        assert part.count("<figure>") == 3
        for row in cells(part)[1:]:
            one = next(setting for setting in run.settings if setting.label == row[0])
            mine = run.of(one)[run.of(one)["label"] == label]
            assert row[1] == f"{100 * mine['hit'].mean():.2f}"
            assert row[3] == f"{mine['iou'].mean():.2f}"
            assert row[4] == f"{100 * (mine['predicted'] == label).mean():.2f}"
    matrix = cells(html.split('<table class="confusion">')[1])
    rows = run.of(run.settings[0])
    for label, row in enumerate(matrix[1:]):
        counts = [int((rows[rows["label"] == label]["predicted"] == other).sum()) for other in range(4)]
        assert [0 if cell == "·" else int(cell) for cell in row[1:5]] == counts


# ----------------------------------------------------------------------------------------------- what can go wrong
def test_failures_and_problems_are_said(page: str) -> None:
    html = section(page, "problems")
    assert "3 rows failed" in html
    assert "In the dataset: missing picture 1." in html
    assert "damaged &lt;b&gt;&amp; broken&lt;/b&gt;: download it again" in html
    assert "val/&lt;x&gt;.jpg" in html
    assert html.count("val/003") == 3


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("evil", [EVIL, IMAGE, CLOSING])
def test_everything_from_outside_stays_text(tmp_path: Path, evil: str) -> None:
    out = tmp_path / f"out{evil.replace('/', '')}"
    make_folder(out, tmp_path / "root", samples=12, names=[evil, *CLASSES[1:]], methods=["cam", evil[:12]], failed=[3])
    with open_run(out) as run:
        about, [session] = run["manifest"], run["sessions"]
        about["dataset"]["split"] = session["machine"]["processor"] = about[evil] = evil
        session["command"] = ["cliploc", evil]
        for place, setting in enumerate(about["settings"].values()):
            setting["options"] = {evil: f"{evil} {place}"}
        problems = [{"kind": evil, "source": evil, "reason": evil}]
        run["manifest"], run["sessions"] = about, [session]
        run["here"] = {**run["here"], "reasons": dict.fromkeys(WNIDS, evil), "problems": problems}
    (tmp_path / "root" / "val" / "004.jpg").unlink()
    page = write_report(out).read_text(encoding="utf-8")
    reader = Reader(re.sub(r"<(image|use|rect|path|circle)([^>]*?)/?>", r"<img\2>", page))
    assert not reader.open
    assert [tag for tag, _ in reader.tags].count("script") == page.count("<script") == 1
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert all(a["src"].startswith("data:image/") for a in reader.all("img") if a.get("src"))
    # title, heading, class names, reasons, problems, command, options, folder, manifest
    assert reader.text.count(evil) > 20
    assert any(evil in (a.get("aria-label") or "") for _, a in reader.tags)
    # The table for other programs escapes too.
    assert not re.search(r"(?<!\\)<", (out / "tables.md").read_text())


@pytest.mark.usefixtures("undrawn")
def test_a_missing_photograph_is_said(tmp_path: Path) -> None:
    make_folder(tmp_path / "out", tmp_path / "root", samples=12)
    (tmp_path / "root" / "val" / "004.jpg").unlink()
    (tmp_path / "root" / "val" / "005.jpg").write_bytes(b"no picture")
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    html = section(page, "problems")
    assert "2 pictures cannot be read" in html
    assert "val/004.jpg: no such file" in html
    assert len(re.findall(r'<image id="photo-', page)) == 10
    shutil.rmtree(tmp_path / "root")
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "12 pictures cannot be read" in page
    assert "image/jpeg" not in page


def test_what_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a run in .*, found no run\.sqlite"):
        write_report(tmp_path)
    (tmp_path / "manifest.json").write_text('{"kind": "benchmark"}')
    with pytest.raises(UsageError, match=r"made by cliploc 0\.2 or another tool"):
        write_report(tmp_path)
    make_folder(tmp_path / "out", tmp_path / "root", samples=4, methods=["cam"])
    with open_run(tmp_path / "out") as run:
        about = run["manifest"]
        run["manifest"] = {**about, "kind": "calibration"}
    with pytest.raises(UsageError, match="expected the folder of a benchmark, got one of calibration"):
        write_report(tmp_path / "out")
    with open_run(tmp_path / "out") as run:
        run["manifest"] = about
        run.write("DELETE FROM run WHERE key = 'summary'")
    with pytest.raises(UsageError, match=r"expected a finished cliploc benchmark in .*, got a stopped one"):
        write_report(tmp_path / "out")


def test_labels_say_what_differs(tmp_path: Path) -> None:
    summary = make_folder(tmp_path / "out", tmp_path / "root", samples=4, methods=["cam", "cam2"])
    with open_run(tmp_path / "out") as run:
        about = run["manifest"]

    def labels(*changes: dict[str, Any]) -> list[str]:
        first = about["settings"]["mini_cam"]
        entries = {f"s{i}": {**first, "id": f"s{i}", **change} for i, change in enumerate(changes)}
        with open_run(tmp_path / "out") as run:
            run["manifest"] = {**about, "settings": entries}
            run["summary"] = dict.fromkeys(entries, summary["mini_cam"])
        return [one.label for one in read_run(tmp_path / "out").settings]

    assert labels({}, {"method": "gem", "options": {"k": 3}}) == ["cam", "gem"]
    assert labels({}, {"model": "RN50"}) == ["cam · mini", "cam · RN50"]
    assert labels({}, {"flip": True}, {"refine": ["caa"]}) == ["cam", "cam · flip", "cam · caa"]
    assert labels({"options": {"k": 1}}, {"options": {"k": 3}}) == ["cam · k=1", "cam · k=3"]
    assert labels({"threshold": 0.2}, {"threshold": 0.4}) == ["cam · τ 0.2", "cam · τ 0.4"]
    assert labels({}, {}) == ["cam · s0", "cam · s1"]
    assert labels({"prompts": "openai-80", "templates": ["a {}"]}, {"prompts": "default"})[0] == "cam · openai-80"


@pytest.mark.usefixtures("undrawn")
def test_a_run_of_masks_alone(tmp_path: Path) -> None:
    summary = make_folder(tmp_path / "out", tmp_path / "root", samples=6, methods=["cam"])
    only = {"mini_cam": {"pxap": 61.25, "confidence_95": {"pxap": [50, 70]}, "images": 6, "evaluated": 6, "failed": []}}
    assert summary.keys() == only.keys()
    with open_run(tmp_path / "out") as run:
        none = "area_share = NULL, iou = NULL, highest = NULL, hits_largest_50 = NULL"
        run.write(f"UPDATE row SET true_boxes = '[]', {none}")
        run["summary"] = only
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "61.25" in section(page, "numbers")
    assert "No picture has true boxes" in section(page, "iou")


@pytest.mark.usefixtures("undrawn")
def test_a_baseline_that_is_the_same_for_several_models_takes_one_place_of_the_best(tmp_path: Path) -> None:
    methods = [f"m{number}" for number in range(11)]
    make_folder(tmp_path / "out", tmp_path / "root", samples=4, methods=methods)
    same = {"method": "centre_box", "baseline": True}
    with open_run(tmp_path / "out") as run:
        about = run["manifest"]
        for place, entry in enumerate(about["settings"].values()):
            entry |= {"model": "mini" if place % 2 else "mini-vit"} | (same if place < 2 else {})
        run["manifest"] = about
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    labels = re.findall(r"</svg>(.+?)</li>", section(page, "tau"))
    assert len(labels) == 8
    assert sum("centre_box" in label for label in labels) == 1
    assert "The 8 best of 10 settings." in section(page, "tau")
    assert len(cells(section(page, "numbers"))) == 12  # all of them stand in the table


def test_the_worst_classes_have_misses_and_the_best_have_hits() -> None:
    class Run:
        """Fourteen classes, of which the first two have no right box and the third half of them."""

        def of(self, _: object) -> pd.DataFrame:
            labels = np.repeat(np.arange(14), 2)
            return pd.DataFrame({"label": labels, "hit": (labels > 2) | (np.arange(28) == 4)})

        def class_name(self, label: int) -> str:
            return str(label)

    bars: Any = class_bars(Run(), None)  # type: ignore[arg-type]
    assert {bar["name"] for bar in bars["Worst"]} == {"0", "1", "2"}
    assert len(bars["Best"]) == 12
    assert {bar["name"] for bar in bars["Best"]} == {str(label) for label in range(2, 14)}


@pytest.mark.usefixtures("undrawn")
def test_without_pictures(made: Made, tmp_path: Path, page: str) -> None:
    shutil.copytree(made[0], tmp_path / "out")
    alone = write_report(tmp_path / "out", pictures=False).read_text(encoding="utf-8")
    assert "must not be passed on" in page
    assert "image/jpeg" not in alone
    assert "cannot be read" not in alone
    assert alone.count('class="heat"') == page.count('class="heat"')


def test_when_everything_failed(tmp_path: Path) -> None:
    make_folder(tmp_path / "out", tmp_path / "root", samples=4, failed=range(4))
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "No picture could be evaluated" in page
    assert "8 rows failed" in page
