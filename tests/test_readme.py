"""The README says what the program says."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from cliploc.cli import app

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"


def table(text: str, name: str) -> str:
    """What stands between two comments, the first of which begins with the name."""
    return text.split(f"<!-- {name}:")[1].split("-->", 1)[1].split("<!-- end -->")[0].strip()


def test_the_table_of_methods_is_the_registry() -> None:
    printed = CliRunner().invoke(app, ["methods", "--markdown"]).stdout.strip()
    assert table(README.read_text(), "methods") == printed, (
        "run `cliploc methods --markdown` and paste its table between the README's two comments"
    )


def test_the_table_of_export_formats_is_the_registry() -> None:
    printed = CliRunner().invoke(app, ["exports", "--markdown"]).stdout.strip()
    assert table((DOCS / "annotate.md").read_text(), "exports") == printed, "paste `cliploc exports --markdown` there"


def test_every_file_that_the_readme_links_is_there() -> None:
    import re

    links = re.findall(r"\]\((?!http)([^)#]+)", README.read_text())
    assert len(links) > 5
    missing = [link for link in links if not (README.parent / link).exists()]
    assert not missing
