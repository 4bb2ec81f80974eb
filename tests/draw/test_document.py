"""The JSON document, and the templates as such."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError

import cliploc
import cliploc.draw
import cliploc.evaluate.tasks
import cliploc.label.editor
import cliploc.web
from cliploc.document import to_document
from cliploc.draw.html import TEMPLATES

from .conftest import Build

DOCS = Path(__file__).parents[2] / "docs" / "json.md"


@pytest.fixture
def document(build: Build) -> dict[str, Any]:
    result = build(
        names=("cat", "dog"),
        hot=[None, None],
        boxes=[(0, (1.23456, 2, 99.999, 120.005), 0.987654), (0, (5, 5, 10, 10), 0.5)],
        found=[True, False],
        presence=[0.912345, np.nan],
        scores=[0.271349, np.inf],
        notes=("animated",),
    )
    settings = {"model": "mini", "method": "cam", "threshold": np.float32(0.5), "out": Path("a/b"), "scales": (1, 1.5)}
    result = replace(result, presence_rule="calibrated")
    return to_document([result], [("bad.jpg", "bad.jpg: no such file")], settings)


def keys(value: Any) -> Any:
    """The document's shape: its keys at every depth, all entries of a list together."""
    if isinstance(value, dict):
        return {key: keys(one) for key, one in value.items()}
    if isinstance(value, list):
        merged: dict[str, Any] = {}
        for one in value:
            if isinstance(one, dict):
                for key, inner in keys(one).items():
                    merged[key] = merged.get(key) or inner
        return merged or None
    return None


def test_it_is_strict_json_with_rounded_values_where_not_a_number_is_null(document: dict[str, Any]) -> None:
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    cat, dog = document["pictures"][0]["names"]
    assert cat["boxes"][0]["xyxy"] == pytest.approx([1.23, 2.0, 100.0, 120.0], abs=0.011)
    assert [round(value, 2) for value in cat["boxes"][0]["xyxy"]] == cat["boxes"][0]["xyxy"]
    assert cat["boxes"][0]["score"] == 0.9877
    assert len(cat["boxes"]) == 2
    assert (cat["score"], cat["presence"], cat["found"], cat["reason"]) == (0.2713, 0.9123, True, None)
    assert (dog["score"], dog["presence"], dog["found"], dog["boxes"]) == (None, None, False, [])
    assert (cat["presence_rule"], dog["presence_rule"]) == ("calibrated", None)
    assert dog["reason"] == "not in the picture"
    picture = document["pictures"][0]
    assert (picture["file"], picture["width"], picture["height"]) == ("folder/photo.jpg", 320, 200)
    assert picture["notes"] == ["animated"]
    assert document["failures"] == [{"file": "bad.jpg", "error": "bad.jpg: no such file"}]
    assert document["settings"] == {
        "model": "mini", "method": "cam", "threshold": 0.5, "out": "a/b", "scales": [1, 1.5],
    }  # fmt: skip
    assert document["cliploc_version"] == cliploc.__version__


def test_the_documented_example_has_these_keys_and_every_one_is_explained(document: dict[str, Any]) -> None:
    block = re.search(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    example = json.loads(block[1])
    example.pop("settings")
    assert list(example.pop("skipped")) == ["count", "files"]  # the command adds it
    shown = {key: value for key, value in document.items() if key != "settings"}
    assert keys(example) == keys(shown)
    assert list(example) == [key for key in document if key != "settings"], "in this order too"
    assert example["schema_version"] == document["schema_version"]
    text = DOCS.read_text(encoding="utf-8").split("```")[2]

    def walk(shape: Any) -> set[str]:
        return set() if not shape else {*shape, *(key for one in shape.values() for key in walk(one))}

    missing = {key for key in walk(keys({**document, "settings": {}})) if f"`{key}`" not in text}
    assert not missing


def test_a_file_name_that_is_no_utf8_can_be_written(build: Build) -> None:
    document = to_document([build(source="caf\udce9.jpg")], [], {})
    assert document["pictures"][0]["file"] == r"caf\udce9.jpg"
    json.dumps(document, ensure_ascii=False).encode("utf-8")


# ------------------------------------------------------------------------------------------------------------ templates
PACKAGES = [
    Path(package.__file__).parent
    for package in (cliploc.draw, cliploc.evaluate.tasks, cliploc.label.editor, cliploc.web)
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_html_is_in_the_templates_only(package: Path) -> None:
    tag = re.compile(r"</?(a|b|body|code|dd|div|dl|dt|figure|h\d|head|i|img|li|p|span|svg|t[dhr]|table|ul)[ >]")
    for path in package.rglob("*.py"):
        assert not tag.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_nothing_but_style_sheets_and_scripts_is_taken_as_it_is_and_attributes_are_quoted(package: Path) -> None:
    templates = list(package.rglob("*.html"))
    assert templates
    for path in templates:
        text = path.read_text(encoding="utf-8")
        for use in re.findall(r"\{\{[^}]*\bsafe\b[^}]*\}\}", text):
            assert re.fullmatch(r'\{\{ asset\("[a-z]+\.(css|js)"\) \| safe \}\}', use), f"{path}: {use}"
        assert not re.search(r"=\{\{", text), path


def test_a_value_that_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        TEMPLATES.render("base.html")
