"""`cliploc label-studio`: draft boxes and masks for Label Studio, task by task."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cliploc._extras import refuse_without
from cliploc._terminal import Terminal
from cliploc.cli.options import (
    AllowHost,
    AuthEnv,
    Debug,
    Host,
    Queue,
    Threads,
    localizer_options,
    number_in,
    use_threads,
    user_in,
)
from cliploc.cli.output import DONE
from cliploc.config import MIN_SCORE, Options

TOKEN = "LABEL_STUDIO_API_KEY"  # the variable's name that Label Studio's own ML backends have


@localizer_options(defaults={"min_score": MIN_SCORE})
def label_studio(
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of Label Studio's local files; files below it may be read. [default: none]"
        ),
    ] = None,
    label_studio_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Label Studio's address; pictures may be downloaded from it. [default: none]"),
    ] = None,
    token_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="Environment variable that holds Label Studio's access token.")
    ] = TOKEN,
    host: Host = "127.0.0.1",
    port: Annotated[int, number_in(0, 65_535, "Port; 0: any free port.")] = 9090,
    auth_env: AuthEnv = None,
    queue: Queue = 32,
    max_megabytes: Annotated[float, number_in(0.01, 2000, "Largest file of a picture, in megabytes.")] = 20,
    max_megapixels: Annotated[float, number_in(0.01, 120, "Largest picture, in megapixels.")] = 120,
    allow_host: AllowHost = None,
    *,
    threads: Threads = None,
    options: Options,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Run an ML backend for Label Studio.

    It answers with draft boxes, brushes or polygons. Needs cliploc[web].

    Example: cliploc label-studio --pictures photos
    """
    refuse_without("web", "label-studio", "starlette", "uvicorn")
    auth = None if auth_env is None else user_in(auth_env)
    use_threads(threads)
    from cliploc.web.label_studio.app import serve
    from cliploc.web.label_studio.predictor import Predictor
    from cliploc.web.label_studio.task_pictures import PictureSource

    terminal = Terminal()
    most = round(max_megabytes * 1e6)
    source = PictureSource(pictures, label_studio_url, os.environ.get(token_env), most)
    if auth is None and host not in ("127.0.0.1", "localhost", "::1"):
        terminal.say(
            f"warning: anyone who can reach {host} can use this server: set a password with --auth-env", style="yellow"
        )
    terminal.say(f"loading {options.model}", style="dim")
    predictor = Predictor(options, source, round(max_megapixels * 1e6))
    with contextlib.suppress(KeyboardInterrupt):  # how a server is ended
        serve(
            predictor,
            host,
            port,
            auth=auth,
            allow_hosts=allow_host or (),
            max_bytes=max(64_000_000, 2 * most),  # a task may hold its picture
            queue=queue,
            say=lambda line: terminal.say(line, style="dim"),
            on_ready=lambda address: terminal.data(Text(address)),
        )
    return DONE
