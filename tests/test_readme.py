"""The README says what the program says."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from cliploc.cli import app

README = Path(__file__).parents[1] / "README.md"


def test_the_table_of_methods_is_the_registry() -> None:
    printed = CliRunner().invoke(app, ["methods", "--markdown"]).stdout.strip()
    text = README.read_text()
    table = text.split("<!-- methods:")[1].split("-->", 1)[1].split("<!-- end -->")[0].strip()
    assert table == printed, "run `cliploc methods --markdown` and paste its table between the README's two comments"


def test_every_file_that_the_readme_links_is_there() -> None:
    import re

    links = re.findall(r"\]\((?!http)([^)#]+)", README.read_text())
    assert len(links) > 5
    missing = [link for link in links if not (README.parent / link).exists()]
    assert not missing
