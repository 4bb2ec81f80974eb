"""The site's pages, the README, the notebooks, and the files about the project. `make docs` builds the site itself."""

import json
import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools import docs_site as site
from tools.readme_outputs import BLOCK, methods_table, with_outputs

import cliploc
from cliploc.cli.commands import NAMES
from cliploc.formats import exports

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/cliploc/cliploc"


def pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for one in (nav.values() if isinstance(nav, dict) else nav) for page in pages(one)]


def test_the_navigation_names_every_page_once() -> None:
    named = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    there = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(named) == sorted([*there, *site.MADE])


def test_every_link_out_of_the_documents_is_there(caplog: pytest.LogCaptureFixture) -> None:
    for path in DOCS.rglob("*.md"):
        site.outside_links(path.read_text(encoding="utf-8"), path.relative_to(DOCS).as_posix(), REPOSITORY)
    assert not caplog.records


def test_every_method_is_explained_with_a_formula_and_a_small_picture() -> None:
    page = (DOCS / "methods_explained.md").read_text(encoding="utf-8")
    explained = re.findall(
        r"^### .+: `(\w+)`\n\n    \S.*\n\n[^!]+\n\n!\[.*\]\(methods/(\w+)\.jpg\)$", page, re.MULTILINE
    )
    assert sorted(explained) == [(name, name) for name in sorted(cliploc.list_methods())]
    sizes = {path.stem: path.stat().st_size for path in (DOCS / "methods").glob("*.jpg")}
    assert sorted(sizes) == sorted(cliploc.list_methods())
    assert max(sizes.values()) <= 40_000, "python tools/make_method_pictures.py draws them"


def notebooks() -> list[Path]:
    return sorted((DOCS / "notebooks").glob("*.ipynb"))


def test_notebooks_are_kept_without_outputs() -> None:
    assert len(notebooks()) == 4
    for path in notebooks():
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs"), f"clear the outputs of {path.name}"
            assert cell.get("execution_count") is None


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == cliploc.__version__
    assert citation["repository-code"] == REPOSITORY


def test_the_changelog_begins_with_this_version_and_the_citations_date() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", text, re.MULTILINE)[0]
    assert version == cliploc.__version__
    assert date == yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["date-released"].isoformat()
    assert f'"cliploc_version": "{version}"' in (DOCS / "json.md").read_text(encoding="utf-8")
    assert f"| cliploc {version} |" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "llms.txt"])
def test_every_file_that_a_page_at_the_top_links_is_there(page: str) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def table_of(page: str, name: str) -> str:
    """A table stands between two comments, the first of which begins with its name."""
    _, after = (ROOT / page).read_text(encoding="utf-8").split(f"<!-- {name}:")
    return after.split("-->", 1)[1].split("<!-- end -->")[0].strip()


def test_the_tables_of_documents_are_the_registries() -> None:
    assert table_of("docs/methods/index.md", "methods") == methods_table(), "run `python tools/readme_outputs.py`"
    rows = ["| `--format` | files | boxes |", "|---|---|---|"]
    for one in exports:
        files = ", ".join(f"`{name}`" for name in (*one.files, *(f"{folder}/" for folder in one.folders)))
        rows.append(f"| `{one.name}` | {files} | {one.about} |")
    assert table_of("docs/annotate.md", "exports") == "\n".join(rows)


def test_the_page_of_figures_names_every_set_and_what_it_names_is_there() -> None:
    """A page that shows a command on one of the sets is in the table, and its tools and sets exist."""
    page = (DOCS / "figures.md").read_text(encoding="utf-8")
    for one in (ROOT / "tools/evaluation_pictures").glob("*.csv"):
        assert f"| `{one.stem}` | " in page
    for tool in set(re.findall(r"tools/\w+\.py", page)):
        assert (ROOT / tool).is_file(), tool
    for target in re.findall(r"`make ([\w-]+)`", page):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    for document in sorted(DOCS.glob("*.md")):
        if document.name != "figures.md" and "shared/data" in document.read_text(encoding="utf-8"):
            assert f"({document.name}#" in page, f"figures.md has no line for {document.name}"


# ------------------------------------------------------------------------------------------------------------ README.md
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


def test_the_readme_shows_what_its_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPLOC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = with_outputs(README, tmp_path)
    assert (tmp_path / "found").is_dir()
    assert len(list(BLOCK.finditer(README))) >= 2
    for shown, printed in zip_longest(README.splitlines(), again.splitlines()):
        assert same(shown, printed), f"python tools/readme_outputs.py writes what is printed now: {printed}"


def same(shown: str | None, printed: str | None) -> bool:
    """Whether lines agree but for one in the last digit of their numbers: processors add in other orders."""
    parts = [NUMBER.split(line or "") for line in (shown, printed)]
    if parts[0][::2] != parts[1][::2]:
        return False
    numbers = zip(*(one[1::2] for one in parts), strict=True)
    return all(abs(float(a) - float(b)) <= 1.01 * 10.0 ** -len(a.partition(".")[2]) for a, b in numbers)


def test_lines_that_differ_by_more_than_rounding_are_told_apart() -> None:
    assert same("bee  score 0.95  box 77 86", "bee  score 0.94  box 78 86")
    assert not same("score 0.95", "score 0.93")
    assert not same("bee found", "bee unsure")
    assert not same("bee", None)


def test_it_is_short() -> None:
    assert len(README.split()) <= 900


def test_every_command_that_it_names_is_one() -> None:
    named = set(re.findall(r"cliploc ([a-z][\w-]*)", " ".join(re.findall(r"`[^`\n]+`|\$ [^\n]+", README))))
    assert {"localize", "annotate", "benchmark"} <= named <= set(NAMES)
