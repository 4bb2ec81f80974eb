"""The templates as such: what they hold is escaped, complete, and the only HTML of the reports and of the web page."""

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

import cliploc.draw
import cliploc.evaluate.tasks
import cliploc.label.editor
import cliploc.web
from cliploc.draw.html import TEMPLATES

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
