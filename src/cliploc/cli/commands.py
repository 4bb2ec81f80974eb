"""The commands by name, each imported when it is asked for, and how their help is set: plain text, in sections."""

import functools
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from cliploc.options import Group

# As `cliploc --help` lists them, without importing them: each with the first line of its own help.
LISTED = {
    "Find": {
        "localize": "Find named things in pictures.",
        "segment": "Give each pixel of a picture one of your names.",
        "compare": "Compare methods, with one sheet per picture.",
        "explain": "Measure whether the maps of one picture are faithful.",
        "classify": "Rank names by how well they fit a whole picture.",
        "demo": "Try cliploc on the pictures that it includes.",
        "serve": "Serve a web page that finds named things in pictures.",
    },
    "Label": {
        "annotate": "Label a folder of pictures with draft boxes.",
        "review": "Correct boxes in a browser: drafts, or a data set.",
        "check": "Find the wrong labels of a data set.",
        "label-studio": "Run an ML backend for Label Studio.",
    },
    "Measure": {
        "benchmark": "Evaluate methods on a dataset.",
        "evaluate": "Evaluate score maps or label maps of any tool.",
        "audit": "Tell what depends on the background of pictures.",
        "calibrate": "Fit scores and presence to your pictures.",
    },
    "Learn": {"train": "Train TS-CAM's or LCTR's layers on a frozen model."},
    "About": {
        "models": "List or describe models, or download weights.",
        "methods": "List the saliency methods, with their options.",
        "datasets": "List, describe or check datasets.",
    },
}
NAMES = [name for names in LISTED.values() for name in names]
HOMES = {  # the others' modules stand beside this one and have their names
    "models": "cliploc.cli.lists",
    "methods": "cliploc.cli.lists",
    "serve": "cliploc.web.command",
    "annotate": "cliploc.label.command",
    "review": "cliploc.label.editor.command",
    "check": "cliploc.label.checking.command",
    "label-studio": "cliploc.label.label_studio.command",
    "benchmark": "cliploc.evaluate.tasks.command",
    "evaluate": "cliploc.evaluate.tasks.command",
    "audit": "cliploc.evaluate.auditing.command",
    "explain": "cliploc.evaluate.tasks.faithfulness.explain",
    "train": "cliploc.evaluate.train.command",
    "datasets": "cliploc.evaluate.data._command",
}
TITLES = {group: {"prompt": "Input", "method": "Model"}.get(group, group.capitalize()) for group in get_args(Group)}
LAST = ("--json", "--debug", "--help")  # parameters that come last in a command's help
FEW = 5  # parameters, which need no sections
WIDEST = 30  # columns of flags, beside which their help begins


def section(group: Group, *, usual: bool) -> str:
    """The title under which a command's help lists an option."""
    return TITLES[group] if usual else f"More: {TITLES[group].lower()}"


SECTIONS = list(dict.fromkeys(section(group, usual=usual) for usual in (True, False) for group in get_args(Group)))


class SectionedCommand(TyperCommand):
    """A command whose help lists its parameters in sections, those of most users first."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        self.help = re.sub("^Example: ", "\b\nExample: ", self.help or "", flags=re.MULTILINE)  # not wrapped, to copy

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """As manuals write arguments: `PICTURE...`, where typer has `{PICTURE}`."""
        pieces = ["[OPTIONS]"]
        for param in self.get_params(ctx):
            if param.param_type_name == "argument":
                name = param.make_metavar(ctx).strip("[]")  # before typer 0.27 it has them
                pieces.append((name if param.required else f"[{name}]") + ("..." if param.nargs == -1 else ""))
        return pieces

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: D102
        params = sorted(self.get_params(ctx), key=_place)
        sectioned = len(params) > FEW and any(getattr(param, "rich_help_panel", None) for param in params)
        rows: dict[str, list[tuple[str, str]]] = {}
        for param in params:
            title = "Arguments" if param.param_type_name == "argument" else "Options"
            if sectioned:
                title = getattr(param, "rich_help_panel", None) or section("run", usual=False)
            if record := param.get_help_record(ctx):
                name, text = record
                name = name.partition(" <")[0] if param.param_type_name == "argument" else name  # without its type
                rows.setdefault(title, []).append((name, text))
        titles = [title for title in ("Arguments", "Options", *SECTIONS) if title in rows]
        write_sections(formatter, {title: rows[title] for title in titles})


def _place(parameter: Any) -> tuple[int, bool, bool]:
    """Where a parameter comes in its section: arguments first, then what is required."""
    last = LAST.index(parameter.opts[0]) if parameter.opts[0] in LAST else -1
    return last, parameter.param_type_name != "argument", not parameter.required


class SectionedGroup(TyperGroup):
    """A command with commands, whose help lists them before its options."""

    def listed(self) -> Mapping[str, Mapping[str, str]]:
        """Its commands by section, each with the first line of its help."""
        return {"Tasks": {name: (one.help or "").partition("\n")[0] for name, one in self.commands.items()}}

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: D102
        sections = {title: list(commands.items()) for title, commands in self.listed().items()}
        records = [param.get_help_record(ctx) for param in self.get_params(ctx)]
        write_sections(formatter, sections | {"Options": [record for record in records if record]})


def plain_app(**facts: Any) -> typer.Typer:
    """An app whose help texts hold square brackets; without rich, which takes time to import."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **facts)


def tasks(help_text: str, **functions: Callable[..., int]) -> typer.Typer:
    """A command with a task for each function, which has its flags."""
    made = plain_app(cls=SectionedGroup, help=help_text, options_metavar="", subcommand_metavar="TASK [OPTIONS]")
    for name, function in functions.items():
        made.command(name, cls=SectionedCommand)(function)

    @made.callback(invoke_without_command=True)
    def without_one(ctx: typer.Context) -> None:
        if ctx.invoked_subcommand is None:
            typer.echo(ctx.get_help())

    return made


@functools.cache
def command_of(name: str) -> TyperCommand | SectionedGroup:
    """A command, whose module is imported now."""
    plain = name.replace("-", "_")
    made = getattr(importlib.import_module(HOMES.get(name, f"cliploc.cli.{plain}")), plain)
    if not isinstance(made, typer.Typer):
        alone = plain_app()
        alone.command(name, cls=SectionedCommand)(made)
        made = alone
    command = typer.main.get_command(made)
    assert isinstance(command, TyperCommand | SectionedGroup)
    command.name = name
    return command


class CommandGroup(SectionedGroup):
    """`cliploc` itself, whose commands are known by name alone until one is asked for."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        self.commands = dict.fromkeys(NAMES)  # type: ignore[assignment]

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | SectionedGroup | None:  # noqa: ARG002, D102
        return command_of(cmd_name) if cmd_name in NAMES else None

    def listed(self) -> Mapping[str, Mapping[str, str]]:  # noqa: D102
        return LISTED


def write_sections(formatter: Any, sections: Mapping[str, list[tuple[str, str]]]) -> None:
    """Sections of names and what they are, all of which begin in the same column."""
    names = [name for rows in sections.values() for name, _ in rows]
    width = min(max(map(len, names), default=0), WIDEST)
    for title, rows in sections.items():
        with formatter.section(title):
            formatter.write_dl([(name.ljust(width), text) for name, text in rows], col_max=WIDEST)
