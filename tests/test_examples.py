"""Examples of docstrings and documents run where the demo's photographs lie, but for `<!-- not run: why -->`."""

import doctest
import importlib
import re
import shutil
from pathlib import Path

import pytest

from cliploc.errors import UsageError
from tests.commands import CAT, cliploc_

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
DOCUMENTS = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"(?P<before>[^\n]*)\n+```python\n(?P<code>.*?)```", re.DOTALL)


@pytest.fixture(autouse=True)
def folder_of_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that examples use; what they write goes here too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPLOC_CACHE", str(tmp_path / "cache"))
    Path("photos").mkdir()
    for photo in (CAT, CAT.with_name("dogs.jpg")):
        shutil.copy(photo, "photos")
    for name in ("cat.jpg", "street.jpg"):
        shutil.copy(CAT, name)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_the_examples_of_a_module(path: Path) -> None:
    try:
        module = importlib.import_module(module_name(path))
    except UsageError as error:  # of an adapter to a package that is not a part of the tests
        pytest.skip(str(error))
    result = doctest.testmod(module)
    assert result.failed == 0, "see what was expected and what came above"


def blocks(document: Path) -> list[str]:
    """The Python blocks that are to run."""
    found = BLOCK.finditer(document.read_text(encoding="utf-8"))
    return [block["code"] for block in found if not block["before"].startswith("<!-- not run: ")]


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if blocks(one)], ids=lambda path: path.name)
def test_the_python_blocks_of_a_document(document: Path) -> None:
    """Blocks of one document follow each other."""
    names: dict[str, object] = {}
    for number, code in enumerate(blocks(document), start=1):
        exec(compile(code, f"{document.name}, Python block {number}", "exec"), names)


@pytest.mark.parametrize(
    "arguments",
    [("localize", "cat.jpg", "-p", "cat", "-p", "pizza"), ("classify", "cat.jpg", "-p", "cat", "-p", "dog")],
)
def test_the_output_that_the_command_lines_document_shows(arguments: tuple[str, ...]) -> None:
    shown = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    printed = cliploc_(*arguments).out.rstrip()
    assert "\n".join(f"    {line}".rstrip() for line in printed.splitlines()) in shown
