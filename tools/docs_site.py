"""What MkDocs asks while it builds the site of docs/ (`hooks` in mkdocs.yml).

It adds the pages that are made from the code and from the notebooks, points links that leave docs/ at the repository,
and mends what GitHub's Markdown and Python's read differently.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?P<start>\]\()(?P<to>\.\.?/[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
CODE = re.compile(r"`[^`\n]+`")
COMMANDS_TITLE = "Help texts: the --help of every command"
PYTHON_GROUPS = {  # the names that are in no group are errors
    "Find named things": ["Localizer", "Options", "Memory", "Detector"],
    "Results": ["Localization", "Boxes", "Masks"],
    "Label a folder": ["annotate", "AnnotateResult", "Reporter"],
    "Lists": ["list_models", "list_methods", "list_datasets", "list_metrics", "list_exports"],
}
log = logging.getLogger("mkdocs.plugins.docs_site")  # its warnings count with --strict


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that have no file."""
    from mkdocs.structure.files import File

    for path, text in MADE.items():
        files.append(File.generated(config, path, content=text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """The page's text as Python's Markdown and the site need it."""
    del files
    markdown = markdown.replace(".ipynb)", ".md)") if page.file.src_uri == "notebooks/index.md" else markdown
    return outside_links(lists_after_text(pipes_in_tables(markdown)), page.file.src_uri, config["extra"]["repository"])


def outside_links(markdown: str, page: str, repository: str) -> str:
    """Links to files outside docs/ lead to the repository; one to a file that is not there is a warning.

    Args:
        markdown: the page.
        page: its path below docs/.
        repository: the repository's address.
    """

    def replace(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link["to"]))
        if path.startswith("docs/"):
            return link[0]
        if not (ROOT / path).exists():
            log.warning("%s links to %s, which is not in the repository", page, path)
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{link['start']}{repository}/{kind}/main/{path}{link['anchor'] or ''})"

    return LINK.sub(replace, markdown)


def pipes_in_tables(markdown: str) -> str:
    """In code within a table, GitHub wants a bar escaped and Python's Markdown shows the backslash."""
    return "\n".join(
        CODE.sub(lambda code: code[0].replace("\\|", "|"), line) if line.lstrip().startswith("|") else line
        for line in markdown.split("\n")
    )


def lists_after_text(markdown: str) -> str:
    """GitHub begins a list or a table right below a paragraph, Python's Markdown below an empty line."""
    lines: list[str] = []
    fenced = False
    for line in markdown.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        before = lines[-1] if lines else ""
        begins = re.match(r"(\* |- |1\. )\S", line) or (line.startswith("|") and not before.startswith("|"))
        continues = not before or re.match(r"(\* |- |\d+\. |\s)", before)
        if begins and not continues and not fenced:
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def python_page() -> str:
    """The public names, from their docstrings, those that are needed first at the beginning."""
    import cliploc

    public = [name for name in cliploc.__all__ if not name.startswith("_")]
    first = [name for names in PYTHON_GROUPS.values() for name in names]
    groups = {**PYTHON_GROUPS, "Errors and warnings": [name for name in public if name not in first]}
    lines = [
        "# Python names: every public class and function",
        "",
        "This page is made from the docstrings. Shapes are in square brackets. Pixels are those of the upright "
        "original. [What is stable](../api.md) lists what does not change between versions.",
        "",
    ]
    for title, names in groups.items():
        lines += [f"## {title}", "", *(f"::: cliploc.{name}\n" for name in names)]
    return "\n".join(lines)


def notebook_page(notebook: Path) -> str:
    """A notebook's text and code, and where to download it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = ["".join(cell["source"]) for cell in cells]
    title, _, introduction = parts[0].partition("\n\n")
    shown = [
        text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for cell, text in zip(cells[1:], parts[1:], strict=True)
    ]
    return "\n\n".join([title, f"[Download this notebook]({notebook.name}).", introduction, *shown, ""])


def commands_page() -> str:
    """Every command's help, from the program."""
    text = subprocess.run(
        [sys.executable, "-m", "typer", "cliploc.cli", "utils", "docs", "--name", "cliploc", "--title", COMMANDS_TITLE],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "TERM": "dumb"},
    ).stdout
    before, _, rest = text.partition("**Commands**:")  # a list whose lines are cut short
    return (
        before.replace(
            "\n\n",
            "\n\nThis page is made from the program's `--help`. "
            "[Command line](../cli.md) says what commands write, and how they fail.\n\n",
            1,
        )
        + rest[rest.index("\n## ") :]
    )


def methods_page() -> str:
    """Every saliency method, from its docstring, by family."""
    from cliploc.methods import Family, methods

    lines = [
        "# Saliency methods: formula, source and options of each",
        "",
        "This page is made from the methods' docstrings. "
        "[How methods read CLIP](../methods_explained.md) explains what they have in common, and "
        "[the gallery](../gallery/README.md) shows their maps.",
        "",
    ]
    entries = [methods.get(name) for name in methods.names()]
    for family in get_args(Family):
        lines += [f"## Family: {family}", ""]
        for entry in (one for one in entries if one.family == family):
            function = entry.function
            lines += [
                f"### {entry.title}",
                "",
                f"`--method {entry.name}` · {' and '.join(sorted(entry.towers))} · {entry.paper}",
                "",
                f"::: {function.__module__}.{function.__name__}",
                "    options:",
                "      show_root_heading: false",
                "      show_root_toc_entry: false",
                "",
            ]
    return "\n".join(lines)


def datasets_page() -> str:
    """Every dataset that can be read: where to get it, its splits and its files."""
    from cliploc.evaluate.data import labelled_readers, readers

    lines = [
        "# Datasets: splits and files of each",
        "",
        "This page is made from the readers, as `cliploc datasets NAME` is. "
        "[Datasets](../datasets.md) says how they are read.",
        "",
    ]
    for one in (*readers, *labelled_readers):
        splits = "; ".join(f"`{split.name}` (to {split.role} on): {split.about}" for split in one.splits)
        lines += [
            f"## `{one.name}`",
            "",
            f"{one.title}: {one.about}. Get it: {one.source}.",
            "",
            f"Splits: {splits}.",
            "",
        ]
        lines += ["```text", one.layout, "```", ""]
    return "\n".join(lines)


def tables_page() -> str:
    """The columns of the Parquet files that benchmarks write, from their schemas."""
    from cliploc.evaluate.tasks import rows
    from cliploc.evaluate.tasks.faithfulness import job as faithfulness
    from cliploc.evaluate.tasks.presence import job as presence
    from cliploc.evaluate.tasks.segmentation import job as segmentation

    tables = {
        "Localization": (rows.schema_of(rows.box_columns()), "benchmark.md#a-row"),
        "Segmentation": (rows.schema_of(segmentation.COLUMNS), "segmentation.md"),
        "Faithfulness": (rows.schema_of(faithfulness.COLUMNS), "faithfulness.md"),
        "Presence": (rows.schema_of(presence.COLUMNS), "presence.md#measure-it"),
    }
    lines = [
        "# Parquet tables: the columns that benchmarks write",
        "",
        "`cliploc benchmark` writes `rows.parquet`, with a row for each sample and setting. Read them with "
        '`pandas.read_parquet("results/rows.parquet")`. This page is made from the program\'s schemas. '
        "[What `--json` prints](../json.md) describes the JSON documents.",
        "",
    ]
    for title, (schema, explained) in tables.items():
        lines += [f"## {title}", "", f"What the columns mean: [{explained.partition('#')[0]}](../{explained}).", ""]
        lines += ["| column | type | may be null |", "|---|---|---|"]
        lines += [f"| `{one.name}` | `{one.type}` | {'yes' if one.nullable else 'no'} |" for one in schema]
        lines.append("")
    return "\n".join(lines)


MADE = {  # path below docs/ → what makes the page
    "reference/python.md": python_page,
    "reference/commands.md": commands_page,
    "reference/methods.md": methods_page,
    "reference/datasets.md": datasets_page,
    "reference/tables.md": tables_page,
    **{
        f"notebooks/{notebook.stem}.md": partial(notebook_page, notebook)
        for notebook in (ROOT / "docs/notebooks").glob("*.ipynb")
    },
}
