"""Rules that hold between packages: private means private, and a light import stays light."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools.house import with_layers

import cliploc
from tests.commands import python

PACKAGE = Path(cliploc.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Everything that a module imports from this package, names in full."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.startswith("cliploc."))


def private_owner(name: str) -> str:
    """The package or module whose own a name is: of `a.b._c.d`, `a.b`; "" of a public name."""
    parts = name.split(".")
    private = [index for index, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
    return ".".join(parts[: private[0]]) if private else ""


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def test_what_is_private_is_imported_by_its_own_package_only() -> None:
    """Else make it public there, or move it."""
    strangers = [
        (own, name)
        for own, tree in TREES.items()
        for name in imported(tree)
        if (owner := private_owner(name)) not in ("", "cliploc") and not f"{own}.".startswith(f"{owner}.")
    ]
    assert not strangers


def test_nobody_asks_whether_a_backbone_has_something() -> None:
    """What is not in the protocol is not asked for."""
    asked = [
        (own, ast.unparse(node))
        for own, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in ("getattr", "hasattr", "setattr")
    ]
    assert not [(own, one) for own, one in asked if re.search(r"\((\w+\.)*_?(backbone|tower)\b", one)]


def test_the_localizer_loads_no_report_and_no_training() -> None:
    loaded = set(python("-c", "import sys, cliploc.localizer; print(*sys.modules)").stdout.split())
    assert "cliploc.localizer" in loaded
    heavy = ("cliploc.evaluate", "cliploc.label", "cliploc.web", "cliploc.runs", "matplotlib", "jinja2", "open_clip")
    assert not loaded.intersection(heavy)


def test_contributing_shows_the_layers_of_the_import_contract() -> None:
    """`exhaustive` there has `lint-imports` refuse a file or folder without a layer."""
    root = Path(__file__).parents[1]
    page, contract = ((root / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "pyproject.toml"))
    assert "exhaustive = true" in contract
    assert with_layers(page) == page, "run python tools/house.py --layers"
    assert with_layers(page.replace("→ tower", "→")) == page  # the picture is made anew


def test_the_files_that_contributing_and_the_walks_name_are_there() -> None:
    root = Path(__file__).parents[1]
    for page in ("CONTRIBUTING.md", "docs/run.md"):
        for name in re.findall(r"`([a-z_/]+/(?:[a-z_]+\.(?:py|js))?)`", (root / page).read_text(encoding="utf-8")):
            assert (PACKAGE / name).exists() or (root / name).exists(), f"{page}: {name}"
