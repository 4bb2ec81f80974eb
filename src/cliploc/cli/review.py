"""`cliploc review`: the editor of an annotation's draft boxes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from cliploc._files import user_path
from cliploc._imports import refuse_without
from cliploc._terminal import Terminal
from cliploc.cli.options import WithThreads, command, flag, refuse_unknown, use_threads
from cliploc.cli.output import DONE, say_next
from cliploc.config import Options

PORT = 7861


@dataclass(frozen=True, kw_only=True)
class ReviewFlags(WithThreads):
    """What `review` has besides the device."""

    drafts: Path = flag("The --out folder of `cliploc annotate`.", metavar="DRAFTS", positional=True)
    port: int = flag("Port; 0: any free port.", PORT, within=(0, 65_535), group="serving")
    model: str | None = flag(
        "The model that suggests boxes.", None, none="the model of the drafts", group="model", metavar="NAME"
    )
    pretrained: str | None = flag("Its weights.", None, metavar="TAG|FILE|own", group="model")


@command(only=("device",))
def review(asked: ReviewFlags, options: Options) -> int:
    """Correct draft boxes in a browser.

    Move, draw, relabel, split and merge boxes. Every change is saved at once in DRAFTS; "Write exports" writes the
    run's files again. Needs cliploc[web].

    Example: cliploc review drafts
    """
    refuse_without_web()
    use_threads(asked.threads)
    if asked.model is not None:
        refuse_unknown([asked.model])
    serve_drafts(user_path(asked.drafts), asked.port, asked.model, asked.pretrained, options.device)
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
    say_next(terminal, f"the annotate command of {drafts} again, which learns from the corrections and exports them")
