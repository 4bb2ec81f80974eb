"""`cliploc review`: the editor of an annotation's draft boxes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cliploc._extras import refuse_without
from cliploc._files import user_path
from cliploc._terminal import Terminal
from cliploc.cli.options import Debug, Threads, number_in, read_options, refuse_unknown, use_threads
from cliploc.cli.output import DONE

PORT = 7861


def review(
    drafts: Annotated[Path, typer.Argument(metavar="DRAFTS", help="The --out folder of `cliploc annotate`.")],
    port: Annotated[int, number_in(0, 65_535, "Port; 0: any free port.")] = PORT,
    model: Annotated[
        str | None, typer.Option(help="The model that suggests boxes. [default: the model of the drafts]")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(metavar="TAG|FILE|own", help="Its weights.")] = None,
    device: Annotated[
        str | None, typer.Option(help="The device of the model. [default: the fastest available]")
    ] = None,
    *,
    threads: Threads = None,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Correct draft boxes in a browser.

    Move, draw, relabel, split and merge boxes. Every change is saved at once in DRAFTS; "Write exports" writes the
    run's files again. Needs cliploc[web].

    Example: cliploc review drafts
    """
    refuse_without_web()
    use_threads(threads)
    if model is not None:
        refuse_unknown([model])
    serve_drafts(user_path(drafts), port, model, pretrained, read_options({"device": device}).device)
    return DONE


def refuse_without_web() -> None:
    """Refuses the editor where its server is not installed."""
    refuse_without("web", "review", "starlette", "uvicorn")


def serve_drafts(drafts: Path, port: int, model: str | None, pretrained: str | None, device: str | None) -> None:
    """Serves the editor until it is interrupted."""
    from cliploc.jobs.review_folder import ReviewFolder
    from cliploc.jobs.suggest import Suggester
    from cliploc.web.editor import serve_review

    terminal = Terminal()
    with ReviewFolder.opened(drafts) as folder:
        own = model is None
        method = str(folder.settings["method"]) if own else None
        suggester = Suggester(
            str(folder.settings["model"]) if own else str(model), pretrained=pretrained, method=method, device=device
        )
        how = "each change is saved at once" if folder.writable else f"{drafts} cannot be written: NOTHING IS SAVED"
        terminal.say(f"{len(folder.pictures):,} pictures; stop with Ctrl+C; {how}", style="dim")
        with contextlib.suppress(KeyboardInterrupt):  # how a server is ended
            serve_review(folder, suggester, port, on_ready=lambda address: terminal.data(Text(address)))
