"""The page of a benchmark and its tables; settings compared picture by picture."""

import base64
import csv
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cliploc.errors import UsageError
from cliploc.evaluate.metrics import Bootstrap, all_numbers
from cliploc.evaluate.tasks.boxes.page import by_accuracy
from cliploc.evaluate.tasks.page import write_report
from cliploc.evaluate.tasks.paired import PerPicture, compared, holm
from cliploc.evaluate.tasks.report import read_run
from cliploc.evaluate.tasks.tables import Cell, to_latex
from cliploc.runs.store import open_run, rows_in
from tests.html_reader import CLOSING, IMAGE, Reader

from .benchmark_folder import CLASSES, WNIDS, make_folder

EVIL = '<script>alert("x")</script> & co | `_'
FILES = ("report.html", "tables.csv", "tables.md")
METHODS = ("cam", "grad_cam", "layer_cam")
Made = tuple[Path, dict[str, Any]]  # a folder and its summary


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run of three methods with one broken sample, its report, and its summary."""
    home = tmp_path_factory.mktemp("a benchmark")
    summary = make_folder(home / "out", home / "root", samples=40, methods=METHODS, failed=[3])
    write_report(home / "out")
    return home / "out", summary


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports whose figures nobody looks at: matplotlib takes longer than all the rest."""
    monkeypatch.setattr("cliploc.evaluate.tasks.tables._svg", lambda *_: "<svg></svg>")


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
    markdown = (out / "tables.md").read_text().split("## All numbers")[1]
    for one, numbers in summary.items():
        in_markdown = next(line for line in markdown.splitlines() if line.startswith(f"| {one} ".replace("_", r"\_")))
        for key in all_numbers():
            if numbers.get(key) is None:
                assert not lines[one][key]
                continue
            low, high = numbers["confidence_95"][key]
            found = [float(lines[one][name]) for name in (key, f"{key}_low", f"{key}_high")]
            assert found == pytest.approx([numbers[key], low, high], rel=1e-6)
            title = all_numbers()[key].title
            column = in_page["setting"].index(title)
            assert in_page[one][column] == f"{numbers[key]:.2f} {low:.1f}–{high:.1f}"
            assert f"| {numbers[key]:.2f} ({low:.1f}–{high:.1f}) |" in in_markdown
        assert float(lines[one]["best_threshold"]) == pytest.approx(numbers["best_threshold"])
        assert lines[one]["evaluated"] == "39"
        assert lines[one]["failed"] == "1"


@pytest.mark.parametrize("evaluated", [{"max_box_acc": 0.0}, {"max_box_acc": None, "pxap": 0.0}])
def test_a_setting_of_0_is_ranked_before_one_without_a_number(evaluated: dict[str, Any], tmp_path: Path) -> None:
    make_folder(tmp_path / "out", tmp_path / "root", samples=2, methods=("cam", "gem"))
    with open_run(tmp_path / "out") as run:
        run["summary"] = {"mini_cam": {"failed": []}, "mini_gem": {**evaluated, "failed": []}}
    assert [one.id for one in read_run(tmp_path / "out", by_accuracy).settings] == ["mini_gem", "mini_cam"]


# ------------------------------------------------------------------------------------------------------------- pictures
def pictures_of(html: str) -> list[tuple[str, Image.Image]]:
    """The captions and pictures of a gallery."""
    figures = re.findall(r'base64,([^"]*)".*?<figcaption>(.*?)</figcaption>', html, re.S)
    return [(said, Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data, said in figures]


def test_the_best_borderline_and_worst_pictures_are_shown_with_their_boxes(made: Made, page: str) -> None:
    best = max(made[1], key=lambda one: made[1][one]["max_box_acc"])
    rows = [row for row in rows_in(made[0]) if row["setting"] == best and row["status"] == "ok"]
    ious = sorted(row["iou"] for row in rows)
    html = section(page, "pictures")
    for kind, extreme in (
        ("Best", ious[-1]),
        ("Borderline", min(ious, key=lambda iou: abs(iou - 0.5))),
        ("Worst", ious[0]),
    ):
        pictures = pictures_of(html.split(f"<h3>{kind}: {best}</h3>")[1].split("<h3>")[0])
        assert len(pictures) == 6
        assert f"IoU {extreme:.2f}" in pictures[0][0]
        [row] = [one for one in rows if one["iou"] == extreme]
        picture = np.asarray(pictures[0][1], float)  # of 160×120, as the file
        x0, y0, x1, y1 = np.array(row["boxes"][0]).round().astype(int)
        for line in (
            picture[y0 + 1, x0 + 8 : x1 - 8],
            picture[y1 - 2, x0 + 8 : x1 - 8],
            picture[y0 + 8 : y1 - 8, x0 + 1],
        ):
            assert (line.mean(axis=-1) > 150).mean() > 0.6, "a white line"
        heat = np.frombuffer(row["thumb"], np.uint8).reshape(28, 28)
        y, x = ((np.array(np.nonzero(heat == heat.max()))[:, 0] + 0.5) / 28 * (120, 160)).astype(int)
        assert picture[y, x].mean() > picture[heat.argmin() // 28 * 120 // 28, heat.argmin() % 28 * 160 // 28].mean()


def test_classes_in_detail_have_their_numbers_and_what_is_predicted(made: Made, page: str) -> None:
    out, summary = made
    html, rows = section(page, "ten"), [row for row in rows_in(out) if row["status"] == "ok"]
    for label, name in enumerate(CLASSES):
        part = html.split(f"<h3>{name} ")[1].split("<h3>")[0]
        assert f"why {name}" in part
        assert part.count("<figure>") == 3
        for row in cells(part)[1:]:
            of_class = [one for one in rows if one["setting"] == row[0] and one["label"] == label]
            first = np.array([one["predictions"][0] == label for one in of_class])
            assert row[1] == f"{summary[row[0]]['per_class'][str(label)]['gt_known']:.2f}"
            assert row[3] == f"{np.mean([one['iou'] for one in of_class]):.2f}"
            assert row[4] == f"{100 * first.mean():.2f}"
            assert 0 <= float(row[5]) <= min(float(row[1]), float(row[4]))
    for label, row in enumerate(cells(html.split("<h3>What the model")[1])[1:]):
        chosen = [one["predictions"][0] for one in rows if one["setting"] == "mini_cam" and one["label"] == label]
        assert [int(cell) for cell in row[1:5]] == [chosen.count(other) for other in range(4)]


# ------------------------------------------------------------------------------------------------------- a page as such
def test_the_page_is_self_contained_and_whole(page: str) -> None:
    reader = Reader(re.sub(r"<path([^>]*?)/?>", r"<img\1>", page))
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


def test_the_same_folder_gives_the_same_bytes_whatever_the_users_own_style(made: Made) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = [(made[0] / name).read_bytes() for name in FILES]
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red", "font.family": "monospace"}):
        write_report(made[0])
        assert matplotlib.rcParams["lines.linewidth"] == 9, "and leave it alone"
    assert [(made[0] / name).read_bytes() for name in FILES] == before


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
    reader = Reader(re.sub(r"<path([^>]*?)/?>", r"<img\1>", page))
    assert not reader.open
    assert [tag for tag, _ in reader.tags].count("script") == page.count("<script") == 1
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert all(a["src"].startswith("data:image/") for a in reader.all("img") if a.get("src"))
    assert reader.text.count(evil) > 20  # title, heading, class names, reasons, problems, command, options, manifest
    assert any(evil in (a.get("alt") or "") for _, a in reader.tags)
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
    shutil.rmtree(tmp_path / "root")
    assert "12 pictures cannot be read" in write_report(tmp_path / "out").read_text(encoding="utf-8")


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
    assert '<h2 id="tau' not in page


@pytest.mark.usefixtures("undrawn")
def test_without_pictures(made: Made, tmp_path: Path, page: str) -> None:
    shutil.copytree(made[0], tmp_path / "out")
    alone = write_report(tmp_path / "out", pictures=False).read_text(encoding="utf-8")
    assert "must not be passed on" in page
    assert "cannot be read" not in alone
    assert alone.count("<figure>") == page.count("<figure>")
    colours = {one.getpixel((2, 2))[:2] for _, one in pictures_of(section(alone, "pictures"))}  # a map on grey
    assert max(max(one) for one in colours) - min(min(one) for one in colours) < 60


def test_when_everything_failed(tmp_path: Path) -> None:
    make_folder(tmp_path / "out", tmp_path / "root", samples=4, failed=range(4))
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "8 rows failed" in page


# ---------------------------------------------------------------------------------------------------- settings in pairs
def mean(means):
    return means[:, 0]


def of(values):
    return PerPicture("key", [f"{i}" for i in range(len(values))], np.array(values, float)[:, None], mean, 100)


def test_p_values_are_holms():
    # By hand: 3 · 0.01, 2 · 0.03, and 0.04, which is raised to the one before.
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}


def test_settings_are_compared_in_pairs_on_the_pictures_of_both():
    """The best is right where the second is, and in five pictures more: unpaired, their intervals overlap widely."""
    second = np.random.default_rng(0).random(200) < 0.6
    best = second.copy()
    best[np.flatnonzero(~second)[:5]] = True
    found = compared({"best": of(best), "second": of(second), "part": of(second[:100]), "none": of([])}, Bootstrap())
    assert list(found) == ["second", "part"]
    assert (found["second"].best, found["second"].pictures, found["part"].pictures) == ("best", 200, 100)
    assert found["second"].difference == pytest.approx(-2.5)
    low, high = found["second"].confidence_95
    assert -6 < low < -2.5 < high < 0  # the standard error of 5 of 200 is 1.1
    assert found["second"].p < 0.1
    assert compared({"one": of(best)}, Bootstrap()) == {}
    same = compared({"a": of(best), "b": of(best)}, Bootstrap())["b"]
    assert (same.difference, same.confidence_95, same.p) == (0, (0, 0), 1)


def test_the_best_may_be_the_lowest():
    low, high = (PerPicture("key", ["a", "b"], np.array([[x], [x]]), mean, low_is_best=True) for x in (0.1, 0.9))
    assert list(compared({"high": high, "low": low}, Bootstrap())) == ["high"]


def test_an_interval_around_a_maximum_is_without_its_bias():
    """Twenty thresholds at which every box is right by the same chance: the best of them looks better than it is."""
    bootstrap, random, holds = Bootstrap(replicates=300), np.random.default_rng(0), {"middle": 0, "around": 0}
    samples = [f"{i}" for i in range(100)]
    for _ in range(60):
        right = (random.random((100, 20)) < 0.5).astype(float)
        replicates = bootstrap.replicated(right, lambda means: means.max(axis=1), samples)
        intervals = {
            "middle": bootstrap.quantiles(replicates),
            "around": bootstrap.around(float(right.mean(axis=0).max()), replicates, samples),
        }
        for name, (low, high) in intervals.items():
            holds[name] += low <= 0.5 <= high
    assert holds["middle"] < 20
    assert holds["around"] > 30
    low, high = bootstrap.around(1.0, np.ones(300), samples)
    assert (round(low, 3), high) == (0.963, 1)  # Wilson's of 100 of 100


def test_latex_has_the_texts_escaped_and_the_best_of_several_bold():
    rows = [
        [Cell("mini_grad_cam"), Cell("69.13", 69.131), Cell("0.3 %", 0.3), Cell("0.02", 0.02)],
        [Cell("cam"), Cell("69.13", 69.128), Cell("0.4 %", 0.4), Cell("0.01", 0.01)],
        [Cell("random"), Cell("–"), Cell("0.5 %", 0.5), Cell("0.03", 0.03)],
    ]
    titles, best = ["setting", "MaxBoxAcc", "at τ", "ECE"], ["high", "", "low"]
    lines = to_latex(titles, rows, best).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrr}"
    assert lines[2] == r"setting & MaxBoxAcc & at $\tau$ & ECE \\"
    assert lines[4] == r"mini\_grad\_cam & \textbf{69.13} & 0.3 \% & 0.02 \\"
    assert lines[5] == r"cam & \textbf{69.13} & 0.4 \% & \textbf{0.01} \\"
    assert lines[6] == r"random & -- & 0.5 \% & 0.03 \\"
    assert "textbf" not in to_latex(titles, rows[:1], best)
