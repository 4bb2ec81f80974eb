"""Rules between packages: private means private, a light import stays light, and an extra that is missing is named."""

import ast
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.house import with_layers

import cliploc
from cliploc.support.imports import PACKAGES
from tests.commands import CAT, python

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


# --------------------------------------------------------------------------------------------------------------- extras
OPTIONAL = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
FOR_DEVELOPERS = {"dev", "docs", "release", "test"}
ELSEWHERE = {  # extra → the test of its absence
    "autodistill": "tests/test_integrations.py::test_without_the_library_one_line_says_what_to_install",
    "fiftyone": "tests/test_integrations.py::test_without_the_library_one_line_says_what_to_install",
    "heic": "tests/images/test_images.py::test_without_pillow_heif_a_heic_file_names_what_to_install",
    "quantus": "tests/test_integrations.py::test_without_the_library_one_line_says_what_to_install",
    "refine": "tests/refine/test_contract.py::test_a_package_that_is_missing_is_named",
    "regions": "tests/find/segmentation/test_regions.py::test_what_cannot_be_is_one_line",
    "sam": "tests/towers/test_sam.py",
    "segmentation": "tests/evaluate/data/test_labelled.py",
}


def with_boxes(root: Path) -> Path:
    root.mkdir()
    (root / "cat.jpg").write_bytes(CAT.read_bytes())
    (root / "boxes.csv").write_text("path,label,x0,y0,x1,y1\ncat.jpg,cat,0,0,400,300\n")
    return root


def labels(root: Path) -> Path:
    with_boxes(root)
    (root / "labels.txt").write_text("cat\n")
    return root


COMMANDS: dict[str, tuple[str, Callable[[Path], Path], str]] = {  # extra → package, folder, command
    "bench": ("pyarrow", with_boxes, "benchmark boxes --dataset folder --root {root} --method cam --out {out}"),
    "calibrate": ("sklearn", with_boxes, "calibrate {root} --truth folder --out {out}.json"),
    "ray": ("ray", labels, "annotate {root} --labels {root}/labels.txt --engine ray --out {out}"),
    "web": ("starlette", with_boxes, "serve --port 0"),
}


ALL_ABSENT = """
import json, sys
from cliploc.cli import main
for package, command in json.load(sys.stdin):
    sys.modules[package] = None
    assert main(command) == 2, command
    del sys.modules[package]
    assert "torch" not in sys.modules, command
"""


def test_every_extra_has_such_a_test() -> None:
    assert set(COMMANDS) | set(ELSEWHERE) == set(OPTIONAL) - FOR_DEVELOPERS
    assert set(PACKAGES) == set(OPTIONAL) - FOR_DEVELOPERS - {"fast"}  # without which results are the same


def test_without_its_packages_one_line_says_what_to_install_before_torch_is_imported_or_anything_written(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    absent = [
        (package, extra, command.format(root=folder(tmp_path / extra), out=out))
        for extra, (package, folder, command) in COMMANDS.items()
    ]
    absent += [("starlette", "web", "label-studio"), ("starlette", "web", f"review {out}")]
    asked = json.dumps([(package, command.split()) for package, _, command in absent])
    done = python("-c", ALL_ABSENT, input=asked, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    for line, (_, extra, _) in zip(done.stderr.splitlines(), absent, strict=True):
        assert f"pip install 'cliploc[{extra}]'" in line
    assert not out.exists()
