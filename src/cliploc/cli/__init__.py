"""The command line: a thin shell over `Localizer`, without mathematics. Nothing heavy is imported before it is used.

Exit codes: 0 done; 1 finished, but some inputs failed; 2 nothing could be done, or stdout could not be written; 130
interrupted; 141 the reader of our output went away.
"""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from cliploc import CliplocError, CliplocWarning, __version__
from cliploc.cli.commands import NAMES, CommandGroup
from cliploc.cli.output import DONE, INTERRUPTED, NO_READER, NOTHING_DONE, OutputError, complain, write_out
from cliploc.registry import import_modules, plugin_in
from cliploc.support.imports import NO_ROOM_TO_LOAD
from cliploc.support.process import out_of_memory, wait_passively

EXAMPLE = re.compile(r"^Example: (.+)$", re.MULTILINE)  # in a command's help

app = typer.Typer(
    name="cliploc",
    cls=CommandGroup,
    help="Name things, and see where they are in a picture.\n\n"
    "A first try: cliploc localize demo:bee.jpg -p bee --out found",
    epilog="Exit code 0: done. 1: finished, but some inputs failed. 2: nothing could be done. "
    "The pages that help names, such as docs/boxes.md: https://github.com/cliploc/cliploc/tree/main/docs",
    rich_markup_mode=None,  # help texts hold square brackets, and rich takes time to import
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cliploc {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import", metavar="MODULE", help="Import a module that registers your own methods or metrics; repeatable."
        ),
    ] = None,
    debug: Annotated[  # noqa: ARG001 - read in `main`, where errors end up
        bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")
    ] = False,
) -> None:
    import_modules(modules or [])
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; every error becomes one line on stderr."""
    if arguments is None:
        if "_CLIPLOC_COMPLETE" in os.environ:  # shell completion: `cliploc --install-completion`
            app(prog_name="cliploc")
        wait_passively()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    command = typer.main.get_command(app)
    try:
        try:
            with warnings.catch_warnings():
                if not debug:
                    warnings.simplefilter("ignore")  # those of libraries are for programmers
                    warnings.simplefilter("always", CliplocWarning)
                    warnings.showwarning = lambda message, *_, **__: complain(str(message))
                with command.make_context("cliploc", words) as context:
                    code = command.invoke(context)
        finally:
            write_out()  # here, so that an error can still be reported; this includes what the parser has printed
        return code if isinstance(code, int) else DONE
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort) as stop:
        complain(": ".join(["interrupted", *map(str, stop.args)]))
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return NO_READER
    except Exception as error:
        if debug:
            traceback.print_exc()
        complain(_in_one_line(error, words))
        if isinstance(error, OutputError):
            _drop_output()
        return NOTHING_DONE


def _drop_output() -> None:
    """Sends stdout to the null device, so that Python can flush what is still buffered when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _in_one_line(error: Exception, words: Sequence[str]) -> str:
    if isinstance(error, CliplocError):
        return str(error)
    if hasattr(error, "format_message"):  # a usage error of the option parser
        context = getattr(error, "ctx", None)
        named = [word for word in words if word in NAMES]
        path = context.command_path if context else " ".join(["cliploc", *named[:1]])
        missing = getattr(error, "param", None) if type(error).__name__ == "MissingParameter" else None
        if missing is None:
            text = error.format_message().rstrip(".")
            return f"{text}{'' if text.endswith('?') else ':'} see {path} --help"
        what = missing.metavar if missing.param_type_name == "argument" else missing.opts[0]
        example = EXAMPLE.search((context and context.command.help) or "")
        return f"expected {what}, got none: {example[1] if example else f'see {path} --help'}"
    if out_of_memory(error):
        if isinstance(error, ImportError):
            return NO_ROOM_TO_LOAD
        return "not enough memory: use a smaller --batch-size, --image-size or fewer --scales"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    first = (str(error).splitlines() or [""])[0]
    text = f"{type(error).__name__}: {first}"
    if (plugin := plugin_in(error)) is not None:
        return f"an error in the module {plugin} ({text}): run it again with --debug, and correct it"
    return f"an error in cliploc ({text}): run it again with --debug, and report it"
