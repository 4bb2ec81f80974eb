"""Measures the code base: its lines, its imports, and how much of it one `cliploc localize` passes through.

python tools/house.py                       # the table
python tools/house.py --layers              # writes the layers of the import contract into CONTRIBUTING.md
python tools/house.py --package DIR --tests DIR --run ARGUMENT …   # another package, and what its `cli:main` is given
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("code", "docstring", "blank", "comment", "import")
MANY = 8  # positional parameters
WORDS = {"asked", "own", "there", "whole", "kept", "said", "told", "given", "shown", "held", "wish"}  # no field's terms
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)

# Runs `package.cli:main` and notes which of the package's functions are entered, in every thread.
DRIVER = """
import importlib, inspect, json, sys, threading
root, package, told, *sys.argv = sys.argv[1:]
depth, files, deepest = threading.local(), set(), [0]
def profile(frame, event, _):
    code = frame.f_code
    if event not in ("call", "return") or not code.co_filename.startswith(root):
        return
    if not code.co_flags & inspect.CO_OPTIMIZED:  # a module or the body of a class
        return
    depth.now = getattr(depth, "now", 0) + (1 if event == "call" else -1)
    if event == "call":
        files.add(code.co_filename)
        deepest[0] = max(deepest[0], depth.now)
threading.setprofile(profile)
sys.setprofile(profile)
try:
    code = importlib.import_module(package + ".cli").main()
finally:
    sys.setprofile(None)
    threading.setprofile(None)
own = [name for name in sys.modules if name == package or name.startswith(package + ".")]
with open(told, "w") as file:
    json.dump({"code": code, "modules": len(own), "files": len(files), "deepest": deepest[0]}, file)
"""


class Package:
    """The files of a package, parsed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.texts = {path: path.read_text(encoding="utf-8") for path in sorted(self.folder.rglob("*.py"))}
        self.trees = {path: ast.parse(text) for path, text in self.texts.items()}
        self.names = {self.name(path): path for path in self.texts}

    def name(self, path: Path) -> str:
        """`a.b` of `a/b.py`, and of `a/b/__init__.py`."""
        parts = path.relative_to(self.folder.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def imports(self, path: Path) -> Iterator[tuple[str, bool]]:
        """The own modules that a file imports, and whether in a function; without those for type checkers."""
        todo: list[tuple[ast.AST, bool]] = [(self.trees[path], False)]
        while todo:
            node, inside = todo.pop()
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                todo += [(child, inside) for child in node.orelse]
                continue
            wanted: list[str] = []
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from a import b`: b is a module or something in one
            own = {name if name in self.names else name.rpartition(".")[0] for name in wanted} & self.names.keys()
            yield from ((name, inside) for name in sorted(own))
            inside = inside or isinstance(node, FUNCTION)
            todo += [(child, inside) for child in ast.iter_child_nodes(node)]


def kinds(text: str, tree: ast.AST) -> Counter[str]:
    """How many lines of a file are of each kind."""
    said: set[int] = set()
    imported: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        elif (
            isinstance(node, (ast.Module, ast.ClassDef, *FUNCTION)) and ast.get_docstring(node, clean=False) is not None
        ):
            said |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    found: Counter[str] = Counter()
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line.strip()
        kind = "docstring" if number in said else "import" if number in imported else "code"
        found[kind if kind != "code" else "comment" if bare.startswith("#") else "code" if bare else "blank"] += 1
    return found


def circles(edges: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """The groups of modules that import each other, over any number of steps."""

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        todo = [name]
        while todo:
            new = edges.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    reach = {name: reached(name) for name in edges}
    return sorted({tuple(sorted(m for m in reach[n] if n in reach.get(m, ()))) for n in edges} - {()})


def twice(names: Iterator[tuple[str, str]]) -> list[str]:
    """`name (place, place)` of each name that is used at several places."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, place in names:
        places[name].append(place)
    return [f"{name} ({', '.join(at)})" for name, at in sorted(places.items()) if len(at) > 1]


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many positional parameters a function has, besides `self` or `cls`."""
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def run(package: Package, arguments: list[str]) -> dict[str, int]:
    """What a run of the command passes through; see `DRIVER`."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        environment = {**os.environ, "PYTHONPATH": str(package.folder.parent)}
        name = package.folder.name
        command = [sys.executable, "-c", DRIVER, str(package.folder) + os.sep, name, str(told), name, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if not told.exists():
            raise SystemExit(f"{name} {' '.join(arguments)} failed:\n{done.stderr}")
        return dict(json.loads(told.read_text(encoding="utf-8")))


def table(package: Package, tests: Path, arguments: list[str]) -> Iterator[str]:
    """The lines of the table."""
    by_place: dict[str, Counter[str]] = defaultdict(Counter)
    for path, text in package.texts.items():
        parts = path.relative_to(package.folder).parts
        by_place[f"{parts[0]}/" if len(parts) > 1 else "top-level files"] += kinds(text, package.trees[path]) + Counter(
            files=1
        )
    rows = sorted(by_place.items(), key=lambda row: -row[1].total())
    yield f"{'lines':<18}{'files':>7}{'all':>8}" + "".join(f"{kind:>11}" for kind in KINDS)
    for place, count in [*rows, ("src", sum(by_place.values(), Counter()))]:
        counts = "".join(f"{count[kind]:>11}" for kind in KINDS)
        yield f"{place:<18}{count['files']:>7}{count.total() - count['files']:>8}{counts}"
    in_tests = [len(path.read_text(encoding="utf-8").splitlines()) for path in tests.rglob("*.py")]
    yield f"{'tests':<18}{len(in_tests):>7}{sum(in_tests):>8}"
    flow = run(package, arguments)
    yield f"\n{package.folder.name} {' '.join(arguments)} (ended with {flow['code']})"
    yield f"  own modules imported: {flow['modules']}; files whose functions are entered: {flow['files']}"
    yield f"  deepest stack of own frames: {flow['deepest']}"
    imports = {package.name(path): list(package.imports(path)) for path in package.texts}
    groups = circles({name: {other for other, _ in others} for name, others in imports.items()})
    yield from listed("import circles", [" ⇄ ".join(one) for one in groups])
    modules = ((name.rpartition(".")[2], name) for name, path in package.names.items() if path.stem != "__init__")
    yield from listed("names of several modules", twice(modules))
    nodes = [(package.name(path), node) for path, tree in package.trees.items() for node in ast.walk(tree)]
    classes = ((node.name, name) for name, node in nodes if isinstance(node, ast.ClassDef))
    yield from listed("names of several classes", twice(classes))
    functions = [(f"{name}.{node.name}", positional(node)) for name, node in nodes if isinstance(node, FUNCTION)]
    long = [f"{name}: {count}" for name, count in functions if count >= MANY]
    yield from listed(f"functions with {MANY} or more positional parameters", long)
    inner = [other for others in imports.values() for other, inside in others if inside]
    yield f"\nimports of own modules inside functions: {len(inner)}"
    words = Counter(word for _, node in nodes for word in private_words(node))
    counts = ", ".join(f"{word} {count}" for word, count in words.most_common())
    yield f"identifiers with words of our own: {words.total()} ({counts})"
    keys = [node for _, node in nodes if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)]
    yield f'values taken by a text key, x["key"]: {sum(isinstance(node.slice.value, str) for node in keys)}'


def private_words(node: ast.AST) -> Iterator[str]:
    """The words of our own (`WORDS`) in the name that a node defines or uses."""
    fields = ("id", "attr", "arg", "name")  # of names, attributes, arguments and definitions
    name = next((text for field in fields if isinstance(text := getattr(node, field, None), str)), "")
    yield from WORDS & {part.lower() for part in re.findall("[A-Z]?[a-z]+|[A-Z]+", name.rpartition(".")[2])}


def with_layers(text: str) -> str:
    """CONTRIBUTING.md with the layers as pyproject.toml has them now: the indented lines with arrows."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    unbroken = " → ".join(layers).replace(" | ", "\0|\0").replace(" : ", "\0:\0")  # neighbours stay on one line
    lines = textwrap.wrap(unbroken, 116, break_on_hyphens=False, break_long_words=False)
    picture = "".join(f"    {line}\n" for line in lines).replace("\0", " ")
    return re.sub(r"(?:^    __main__ →.*\n(?:    .*\n)*)", picture, text, count=1, flags=re.MULTILINE)


def listed(title: str, found: list[str]) -> list[str]:
    return [f"\n{title}: {len(found)}", *(f"  {one}" for one in found)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=ROOT / "src" / "cliploc")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests")
    photo = str(ROOT / "src" / "cliploc" / "demo_photos" / "cat.jpg")
    parser.add_argument("--run", nargs=argparse.REMAINDER, default=["localize", photo, "-p", "cat"])
    parser.add_argument("--layers", action="store_true", help="only write them into CONTRIBUTING.md")
    given = parser.parse_args()
    if given.layers:
        page = ROOT / "CONTRIBUTING.md"
        page.write_text(with_layers(page.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    print(*table(Package(given.package), given.tests, given.run), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
