"""`cliploc plugin new NAME`: a small package with a method, a metric and their test, to begin with."""

import keyword
import re
import sys
from importlib import metadata, resources
from itertools import chain
from pathlib import Path
from string import Template

from cliploc._files import remove
from cliploc._terminal import Terminal, printable
from cliploc.cli.options import WithDebug, command, flag
from cliploc.cli.output import DONE, say_next, writable, write
from cliploc.errors import UsageError

FILES = {  # below the package's folder → template
    "pyproject.toml": "pyproject.toml.txt",
    "$module/__init__.py": None,
    "$module/method.py": "method.py.txt",
    "$module/metric.py": "metric.py.txt",
    "tests/test_$module.py": "test.py.txt",
}


class PluginFlags(WithDebug):
    """What `plugin` has."""

    action: str = flag("The word new.", metavar="new", positional=True)
    name: str = flag("Name of the package, such as my-cam.", metavar="NAME", positional=True)
    out: Path | None = flag("Folder to write.", None, metavar="DIR", none="NAME, here", group="output")


@command()
def plugin(asked: PluginFlags) -> int:
    """Write a package with a new method and metric.

    It has entry points, by which cliploc finds both, and a test. Change them into yours.

    Example: cliploc plugin new my-cam
    """
    if asked.action != "new":
        raise UsageError(f"expected cliploc plugin new NAME, got {asked.action!r}")
    name, module = asked.name, asked.name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_-]*[a-z0-9]", name) or keyword.iskeyword(module):
        raise UsageError(f"expected a name of lower-case letters, digits and hyphens, such as my-cam, got {name!r}")
    from cliploc.saliency import methods

    installed = metadata.packages_distributions()  # module → the packages that it comes from
    others = {project.lower().replace("-", "_") for project in (*installed, *chain(*installed.values()))}
    if module in {*methods.known_names(), *sys.stdlib_module_names, *others, "cliploc"}:
        raise UsageError(f"the name {module} is taken: choose another")
    out = asked.out or Path(name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already: choose another name, or another --out")
    words = {"name": name, "module": module, "Class": "".join(map(str.capitalize, module.split("_")))}
    templates = resources.files("cliploc") / "plugin_files"
    try:
        for place, template in FILES.items():
            path = out / Template(place).substitute(words)
            writable(path.parent)
            text = "" if template is None else (templates / template).read_text(encoding="utf-8")
            write(path, Template(text).substitute(words).encode())
    except UsageError:  # half a package would be "there already"
        for left_over in out.glob("*"):
            remove(left_over)
        raise
    terminal = Terminal()
    terminal.data(printable(str(out)))
    say_next(terminal, ("pip", "install", "-e", out))
    return DONE
