"""Rules that hold between packages: private means private, and a light import stays light."""

import ast
import contextlib
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.house import with_layers

import cliploc
from tests.commands import elsewhere, python

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
    heavy = ("cliploc.report", "cliploc.training", "cliploc.web", "cliploc.jobs", "matplotlib", "jinja2", "open_clip")
    assert not loaded.intersection(heavy)


POSIX_ONLY = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")
POSIX_NAMES = {  # module → what it has on POSIX systems only, as far as somebody could use it here
    "os": (
        "fork", "geteuid", "getpgid", "getuid", "killpg", "mkfifo", "sched_getaffinity", "setsid", "statvfs", "sysconf",
        "O_NOFOLLOW", "O_NONBLOCK", "WNOHANG",
    ),
    "signal": ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1"),
}  # fmt: skip


def imported_as_on_windows() -> list[str]:
    """Our modules that can be imported, after all libraries, where what Windows lacks is not there."""
    with contextlib.suppress(ImportError):
        import starlette  # noqa: F401
    for name in [one for one in sys.modules if one.partition(".")[0] == "cliploc"]:
        del sys.modules[name]
    sys.modules.update(dict.fromkeys(POSIX_ONLY))  # type: ignore[arg-type]
    for module, names in POSIX_NAMES.items():
        for name in names:
            if hasattr(sys.modules[module], name):
                delattr(sys.modules[module], name)
    anew = importlib.import_module("cliploc")
    for found in pkgutil.walk_packages(anew.__path__, "cliploc."):
        if found.name.startswith("cliploc.integrations.") or found.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:  # of an extra that is not installed
            if error.name in POSIX_ONLY:
                raise
    return [name for name in sys.modules if name.startswith("cliploc.")]


def test_no_module_needs_what_windows_lacks_to_be_imported() -> None:
    """A function may need it, where it asks for the system first."""
    assert len(elsewhere(imported_as_on_windows)) > 0.8 * len(MODULES)


def test_contributing_shows_the_layers_of_the_import_contract() -> None:
    """`exhaustive` there has `lint-imports` refuse a file or folder without a layer."""
    root = Path(__file__).parents[1]
    page, contract = ((root / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "pyproject.toml"))
    assert "exhaustive = true" in contract
    assert with_layers(page) == page, "run python tools/house.py --layers"
    assert with_layers(page.replace("→ tower", "→")) == page  # the picture is made anew
