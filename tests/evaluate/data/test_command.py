"""`cliploc datasets`: the list, all about one, and the check of a folder."""

import json
import re
from pathlib import Path

import pytest

from cliploc.evaluate.data import open_dataset, readers
from tests.commands import cliploc_, python, succeeded
from tests.evaluate.data import folders

DOCS = Path(__file__).parents[3] / "docs"


def test_every_dataset_is_listed_with_splits_and_source():
    result = cliploc_("datasets")
    assert (result.code, result.err) == (0, "")
    for one in readers:
        (line,) = (line for line in result.out.splitlines() if line.startswith(f"{one.name} "))
        assert one.source in line
        for split in one.splits:
            assert split.name in line
            assert split.role in line
    assert "ten-classes" in result.out


@pytest.mark.parametrize("name", readers.names())
def test_all_about_one_holds_its_layout_and_json_says_of_a_good_folder_what_lines_say(name, tmp_path):
    about = succeeded("datasets", name)
    assert readers.get(name).layout in about.out
    root = folders.make(name, tmp_path)
    result, document = cliploc_("datasets", name, "--root", root), cliploc_("datasets", name, "--root", root, "--json")
    following = f"next: cliploc benchmark boxes --dataset {name} --root {root} --out results\n"
    assert (result.code, document.code, result.err, document.err) == (0, 0, following, "")
    facts = json.loads(document.out)
    dataset = open_dataset(name, root)
    assert facts["schema_version"] == 1
    assert facts["samples"] == len(dataset)
    assert facts["boxes"] + facts["masks"] > 0
    for key in ("pictures", "samples", "classes"):
        assert re.search(rf"^{key} +{facts[key]}\b", result.out, re.M)
    assert sum(facts["problems"].values()) == len(facts["named"]) == len(dataset.problems)
    for kind, count in facts["problems"].items():
        assert f"{count} {kind}, left out by design" in result.out


def test_problems_are_1_and_counted_by_kind(tmp_path):
    root = folders.folder(tmp_path)
    for i in range(5):
        folders.picture(root / f"more/{i}.jpg")
    (root / "sub/b.png").unlink()
    result = cliploc_("datasets", "folder", "--root", root)
    assert result.code == 1
    assert re.search(r"^problems +6$", result.out, re.M)
    assert "5 unannotated picture" in result.out
    assert "· more/2.jpg: not in boxes.csv: left out" in result.out
    assert "· … and 2 more" in result.out
    assert "more/4.jpg" not in result.out
    assert "· sub/b.png: expected a picture at" in result.out
    named = json.loads(cliploc_("datasets", "folder", "--root", root, "--json").out)["named"]
    unannotated = [one["source"] for one in named if one["kind"] == "unannotated picture"]
    assert unannotated == [f"more/{i}.jpg" for i in range(5)]


def test_the_list_needs_no_torch():
    code = "import sys; from cliploc.cli import main; main(['datasets']); sys.exit('torch' in sys.modules)"
    assert python("-c", code, check=False).returncode == 0


def test_the_page_of_datasets_names_every_reader_and_its_example_is_the_layout():
    page = (DOCS / "datasets.md").read_text()
    assert [name for name in readers.names() if f"`{name}`" not in page] == []
    assert readers.get("folder").layout in page
