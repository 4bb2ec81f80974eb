"""`cliploc help`: shows the pages of the documentation, which are in the package and need no network."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cliploc._terminal import Terminal, styled
from cliploc.cli.commands import NAMES, command_of
from cliploc.cli.output import DONE, title_row
from cliploc.errors import UnknownNameError

if TYPE_CHECKING:
    from rich.text import Text

LINK = re.compile(r"\]\(([\w-]+)\.md\)")  # to a page as a whole: one to a section does not tell its kind
HIDDEN = re.compile(r"^(<!--.*?-->|!\[[^\]]*\]\([^)]*\))\n+", re.MULTILINE | re.DOTALL)  # comments and pictures


def help(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="TOPIC", help="A topic or a command; without it, all topics.")] = "",
    whole: Annotated[bool, typer.Option("--all", help="Show the whole page, not only its beginning.")] = False,
) -> int:
    """Explain a topic, or list the topics.

    It works offline.
    """
    terminal = Terminal()
    if not name:
        rows: list[Sequence[str | Text]] = [title_row("topic", "title")]
        for section, names in _sections().items():
            rows += [["", ""], [styled(section, "bold"), ""]]
            rows += [
                [f"  {page}", _page(page).partition("\n")[0].removeprefix("# ").replace("`", "")] for page in names
            ]
        terminal.listing(rows)
        terminal.data("\ncliploc help TOPIC shows the beginning of a page, and --all the whole page.")
        terminal.data("cliploc COMMAND --help lists the options of a command.")
        return DONE
    pages = {page for names in _sections().values() for page in names}
    if name in pages:
        page = _page(name)
        first, *sections = page.split("\n## ")
        if sections and not whole:
            titles = "\n".join(f"* {section.partition(chr(10))[0]}" for section in sections)
            page = f"{first.rstrip()}\n\nSections of the whole page (`cliploc help {name} --all`):\n\n{titles}\n"
        if sys.stdout.isatty():
            from rich.markdown import Markdown  # takes time to import

            terminal.data(Markdown(page, hyperlinks=False))
        else:
            terminal.data(page.rstrip())  # as Markdown for a file or another program
    elif name in NAMES:
        command = command_of(name)
        terminal.data(command.get_help(typer.Context(command, parent=context.parent, info_name=name)))
    else:
        raise UnknownNameError("topic", name, {*pages, *NAMES}, listed_by="help")
    return DONE


@cache
def docs_folder() -> Path:
    """The pages' folder: in the package, or beside `src` in a checkout."""
    package = Path(__file__).parents[1]
    return package / "docs" if (package / "docs").is_dir() else package.parents[1] / "docs"


def _sections() -> dict[str, list[str]]:
    """The pages' names under the headings of the index, each once."""
    sections: dict[str, list[str]] = {}
    seen = {"index"}
    for part in _page("index").split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        names = dict.fromkeys(name for name in LINK.findall(text) if name not in seen)
        seen.update(names)
        sections[heading] = list(names)
    sections["More"] = sorted({path.stem for path in docs_folder().glob("*.md")} - seen)  # the index does not name them
    return {heading: names for heading, names in sections.items() if names}


def _page(name: str) -> str:
    from cliploc._documents import read_text

    return HIDDEN.sub("", read_text(docs_folder() / f"{name}.md"))
