"""Things of other packages: found by entry points or named by `--import`, listed and run like our own."""

import json
import re
import tomllib
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from cliploc.errors import UsageError
from cliploc.evaluate.metrics import JudgedMap, MeanMetric
from cliploc.evaluate.tasks.page import write_report
from cliploc.registry import named_modules
from cliploc.web.service import Offer, Service
from tests.commands import CAT, Outcome, cliploc_, elsewhere, forked, refused
from tests.evaluate.samples import judged_here, wsol_folder

DOCUMENT = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
OF_DOCUMENT = dict(re.findall(r"<!-- not run: [^\n]* (\w+\.py) -->\n```python\n(.*?)```", DOCUMENT, re.DOTALL))
METHOD, METRIC, EXPORT = (OF_DOCUMENT[name] for name in ("method.py", "metric.py", "writer.py"))
MODEL = """
from dataclasses import replace

from cliploc.towers import create, models

models.register(
    "my-mini", replace(models.get("mini"), name="my-mini", build=lambda *_: create("mini"), about="mini once more")
)
"""
DATASET = """
from cliploc.evaluate.data import Candidate, Annotations, Split, reader
from cliploc.values import ClassName


@reader("ones", title="Ones", about="a box a picture", source="yours", splits=(Split("all", "report", "all"),),
        layout="*.jpg   the pictures")
def read(root, split, problems):
    files = sorted(root.glob("*.jpg"))
    return Annotations((ClassName("cat", ("cat",)),), [Candidate(one.name, one, 0, [(1, 1, 99, 99)]) for one in files])
"""


def install(site: Path, package: str, files: dict[str, str], points: dict[str, dict[str, str]]) -> Path:
    """A package as pip installs it: its folder, and beside it the folder with its metadata."""
    (site / package).mkdir(parents=True)
    for name, text in {"__init__.py": "", **files}.items():
        (site / package / name).write_text(text, encoding="utf-8")
    info = site / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.2\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in some.items()) for group, some in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return site


def run(site: Path, *words: object, cwd: Path | None = None) -> Outcome:
    """The command line there, in a process that has looked up no plugin yet."""
    return forked(*words, path=[site], cwd=cwd)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder for packages that holds one with a thing of each kind."""
    files = {**OF_DOCUMENT, "model.py": MODEL, "data.py": DATASET}
    project = tomllib.loads(re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)[0])["project"]
    assert (project["name"], project["version"]) == ("nice-things", "1.2")
    points = {
        **project["entry-points"],
        "cliploc.models": {"my-mini": "nice_things.model"},
        "cliploc.datasets": {"ones": "nice_things.data:read"},
    }
    return install(tmp_path / "site", "nice_things", files, points)


LISTS = ("methods", "datasets")


def listed() -> tuple[list[Outcome], list[str]]:
    """What commands list, and the methods on the page."""
    lists = [cliploc_(*words) for words in (*((one,) for one in LISTS), ("models", "my-mini"))]
    return lists, list(Service([Offer("mini")], device="cpu").menu("mini").methods)


def test_installed_things_are_listed_and_on_the_page(site):
    lists, on_page = elsewhere(listed, path=[site])
    assert [(one.code, one.err) for one in lists] == [(0, "")] * 3
    lines = [line for one in lists for line in one.out.splitlines()]
    assert {"plain_sum", "ones"} <= {line.split(" ")[0] for line in lines}
    assert any(line.split() == ["name", "my-mini"] for line in lines)
    assert "plain_sum" in on_page
    assert "plain_sum" not in cliploc_("methods").out


def test_an_installed_method_and_model_locate(site):
    words = ("-p", "cat", "--model", "my-mini", "--method", "plain_sum+cam", "-o", "power=2", "--json")
    done = run(site, "localize", CAT, *words)
    assert done.code == 0, done.err
    assert json.loads(done.out)["pictures"][0]["names"][0]["found"]


def test_an_installed_export_is_written(site, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(CAT.read_bytes())
    words = ("annotate", tmp_path / "photos", "--labels", tmp_path / "labels.txt", "--out", tmp_path / "out")
    done = run(site, *words, "--format", "lines,coco", "--method", "plain_sum")
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "lines.txt").read_text().startswith("cat.jpg\tcat\t")


def test_metrics_of_a_package_and_of_an_imported_module_reach_the_processes_that_measure(site, tmp_path):
    (tmp_path / "mine.py").write_text(METRIC.replace("hot_share", "my_share"))
    root = wsol_folder(tmp_path / "data", 2)
    words = ("benchmark", "boxes", "--dataset", "wsol", "--root", root, "--method", "plain_sum,cam", "--no-baselines")
    words = (*words, "--out", tmp_path / "out")
    done = run(site, "--import", "mine", *words, cwd=tmp_path)
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]
    assert set(summary) == {"mini_plain_sum", "mini_cam"}
    assert all(0 < one[share] < 100 for one in summary.values() for share in ("hot_share", "my_share"))
    # Gone on with where neither is there: the run's other numbers still are.
    write_report(tmp_path / "out")


def test_an_installed_faithfulness_metric_is_measured(site, tmp_path):
    root = wsol_folder(tmp_path / "data", 1)
    words = ("benchmark", "faithfulness", "--dataset", "wsol", "--root", root, "--method", "cam", "--no-baselines")
    done = run(site, *words, "--metric", "top_half", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert 0 < json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]["mini_cam"]["top_half"] < 1


def judged(*words: str) -> Outcome:
    with judged_here():
        return cliploc_(*words)


def test_a_run_is_not_resumed_with_an_edited_method(site, tmp_path):
    root = wsol_folder(tmp_path / "data", 2)
    words = ("annotate", root, "-p", "cat")
    words = (*words, "--method", "plain_sum", "--out", tmp_path / "out")
    assert elsewhere(judged, *map(str, words), path=[site]).code == 0
    assert elsewhere(judged, *map(str, words), path=[site]).code == 0
    with (site / "nice_things" / "method.py").open("a") as file:
        file.write("# other numbers\n")
    done = elsewhere(judged, *map(str, words), path=[site])
    assert done.code == 2
    assert re.search(r"other settings \(plugins.nice_things: \"1.2 \w{16}\" there, \"1.2 \w{16}\" asked for", done.err)


def test_an_installed_dataset_is_read(site, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat.jpg").write_bytes(CAT.read_bytes())
    done = run(site, "datasets", "ones", "--root", tmp_path / "data", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["boxes"] == 1


# ------------------------------------------------------------------------------------------------- what can be wrong
def test_a_broken_plugin_is_one_line_and_the_rest_is_there(site):
    broken = {"method.py": "import no_such_module_anywhere\n", "stops.py": "raise SystemExit(3)\n"}
    points = {"cliploc.methods": {"broken": "bad_things.method", "stops": "bad_things.stops"}}
    done = run(install(site, "bad_things", broken, points), "methods")
    assert done.code == 0
    assert "plain_sum" in done.out
    assert "cam " in done.out
    first, second = done.err.splitlines()
    assert "'broken' of the package bad-things 1.2" in first
    assert "No module named 'no_such_module_anywhere'" in first
    assert "'stops' of the package bad-things 1.2" in second


def test_a_plugin_that_fails_is_named_as_the_place(site):
    method = site / "nice_things" / "method.py"
    method.write_text(METHOD.replace("ctx.dense()", "ctx.trace.tokens[-1]"))
    done = run(site, "localize", CAT, "-p", "cat", "--method", "plain_sum")
    assert done.err == (
        "cliploc: an error in the module nice_things.method (KeyError: -1): run it again with --debug, and correct it\n"
    )


@pytest.mark.parametrize(("option", "code"), [("power", 0), ("depth", 2)])
def test_needs_are_of_the_methods_options_with_its_defaults(option, code, tmp_path):
    (tmp_path / "mine.py").write_text(METHOD.replace("needs=Needs(", f"needs=lambda {option}: Needs("))
    done = run(tmp_path, "--import", "mine", "localize", CAT, "-p", "cat", "--method", "plain_sum", "--json")
    assert done.code == code, done.err
    assert code == 0 or "expected needs of its options, power, got one of depth" in done.err


@pytest.mark.parametrize("value", [float("nan"), None, np.ones(2)])
def test_a_metric_that_gives_no_number_is_refused_at_the_first_map(value):
    class NoNumber(MeanMetric):
        name = column = "no_number"
        numbers: ClassVar = {}

        def value_of(self, judged: JudgedMap) -> float:
            return value

    with pytest.raises(UsageError, match="expected a number of each map from the metric no_number"):
        NoNumber().measure(JudgedMap("a", np.ones((4, 4), np.float32), np.array([[0, 0, 2, 2]]), (4, 4)))


def test_a_plugin_cannot_take_the_place_of_our_own(site):
    files = {"method.py": METHOD.replace('"plain_sum"', '"cam"')}
    install(site, "sly_things", files, {"cliploc.methods": {"cam": "sly_things.method"}})
    done = run(site, "methods")
    (line,) = done.err.splitlines()
    assert "sly-things 1.2" in line
    assert "'cam' is registered twice" in line
    assert "Zhou et al. 2016" in done.out
    assert "Plain sum" in done.out  # the good one
    done = run(site, "--import", "sly_things.method", "methods")
    assert (done.code, done.out) == (2, "")
    assert "the module sly_things.method cannot be imported (ValueError: method 'cam' is registered twice" in done.err


# ---------------------------------------------------------------------------------------------------------- --import


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_thing", "expected a module to import, found none called 'no_such_thing'"),
        ("breaks", "the module breaks cannot be imported (ZeroDivisionError: division by zero)"),
        (".x", "expected the name of a module to import, got '.x'"),
    ],
)
def test_import_of_what_is_not_there_or_is_broken_is_one_line(tmp_path, monkeypatch, name, said):
    (tmp_path / "breaks.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert said in refused("--import", name, "methods")
    assert name not in named_modules()
