"""`cliploc serve`: the page where one types names."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from cliploc._allocator import share_heaps
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
    pair_weights,
    refuse_unknown,
    use_threads,
    user_in,
)
from cliploc.cli.output import DONE
from cliploc.config import Options


@localizer_options(only=("device", "precision", "recipe"))
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="Models to choose from; repeatable, the first is selected. [default: mini, mini-vit]"
        ),
    ] = None,
    pretrained: Annotated[
        list[str] | None, typer.Option(metavar="TAG|FILE|own", help="Weights: once for all, or once per --model.")
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Trained layers from `cliploc train` for one of the models; repeatable."),
    ] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, number_in(0, 65_535, "Port; 0: any free port.")] = 7860,
    auth_env: AuthEnv = None,
    queue: Queue = 32,
    max_megabytes: Annotated[float, number_in(0.01, 2000, "Largest upload, in megabytes.")] = 20,
    max_megapixels: Annotated[float, number_in(0.01, 120, "Largest photo, in megapixels.")] = 25,
    max_seconds: Annotated[
        float, number_in(0.1, 86_400, "Time limit of one request in seconds, without waiting time.")
    ] = 300,
    rate: Annotated[
        int, number_in(0, 1_000_000, "Requests per minute and client from other machines; 0: no limit.")
    ] = 600,
    allow_host: AllowHost = None,
    *,
    threads: Threads = None,
    options: Options,
    debug: Debug = False,
) -> int:
    """Serve a web page that finds named things in photos.

    Needs cliploc[web].

    Example: cliploc serve --model mini --model ViT-B-16 --pretrained own --pretrained openai
    """
    refuse_without("web", "serve")
    models = pair_weights(model or ["mini", "mini-vit"], pretrained)
    refuse_unknown(name for name, _ in models)
    auth = None if auth_env is None else user_in(auth_env)
    share_heaps()
    use_threads(threads)
    from cliploc.web.find import serve as serve_page
    from cliploc.web.service import Offer, Service, with_heads

    terminal = Terminal()
    offers = [Offer(name, weights) for name, weights in models]
    most_pixels = round(max_megapixels * 1e6)
    recipe = options.recipe or "default"
    service = Service(
        with_heads(offers, head or []), options.device, options.precision, most_pixels, max_seconds, recipe
    )
    if auth is None and host not in ("127.0.0.1", "localhost", "::1"):
        terminal.say(
            f"warning: anyone who can reach {host} can use this page: set a password with --auth-env", style="yellow"
        )
    terminal.say(f"loading {offers[0].label}", style="dim")
    serve_page(
        service,
        host,
        port,
        auth=auth,
        queue=queue,
        max_bytes=round(max_megabytes * 1e6),
        allow_hosts=allow_host or (),
        rate=rate,
        debug=debug,
        on_ready=lambda address: terminal.data(Text(address)),
    )
    return DONE
