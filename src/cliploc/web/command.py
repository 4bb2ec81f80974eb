"""`cliploc serve`: the page that finds things; and the options of every server."""

import os
from typing import Annotated

from msgspec import Meta

from cliploc import Options, UsageError
from cliploc.cli import options as cli
from cliploc.cli.output import DONE
from cliploc.cli.terminal import Terminal
from cliploc.options import WAITING, RecipeName
from cliploc.support.imports import check_installed

Queue = Annotated[int, Meta(ge=1, le=400)]
Megabytes = Annotated[float, Meta(ge=0.01, le=2000)]
Megapixels = Annotated[float, Meta(ge=0.01, le=120)]


class ServerFlags(cli.WithThreads):
    """Of servers."""

    host: str = cli.flag(
        "Address to listen on; 0.0.0.0: all networks.", "127.0.0.1", metavar="ADDRESS", group="serving"
    )
    auth_env: str | None = cli.flag(
        "Environment variable that holds user:password.", None, metavar="VARIABLE", group="serving"
    )
    queue: Queue = cli.flag("Number of jobs that may wait; more are refused.", 32, group="serving")
    allow_host: list[str] | None = cli.flag(
        "Another host name of this server, such as that of a proxy; repeatable.", None, metavar="NAME", group="serving"
    )


class ServeFlags(cli.ModelFlags, ServerFlags):
    """What `serve` has besides options of `Localizer`."""

    queue: Queue = cli.flag("Number of searches that may wait; more are refused.", WAITING, group="serving")

    model: list[str] | None = cli.flag(
        "Models to choose from; repeatable, the first is selected.", None, metavar="NAME", none="mini, mini-vit",
        group="model",
    )  # fmt: skip
    head: list[str] | None = cli.flag(
        "Trained layers from `cliploc train` for one of the models; repeatable.", None, metavar="FILE", group="model"
    )
    recipe: RecipeName = cli.flag(
        "What runs if a visitor names no method: a method with settings that improve its boxes.", "default",
        group="model",
    )  # fmt: skip
    sam: str | None = cli.rare(
        "A SAM or SAM 2 that can draw masks, too; needs cliploc[sam].", None, metavar="FOLDER", group="model"
    )
    port: cli.Port = cli.flag("Port; 0: any free port.", 7860, group="serving")
    max_megabytes: Megabytes = cli.rare("Largest upload, in megabytes.", 20, group="serving")
    max_megapixels: Megapixels = cli.rare("Largest picture, in megapixels.", 25, group="serving")
    max_seconds: Annotated[float, Meta(ge=0.1, le=86_400)] = cli.rare(
        "Time limit of one request in seconds, without waiting time.", 300, group="serving"
    )


@cli.command(only=("device", "precision"))
def serve(flags: ServeFlags, options: Options) -> int:
    """Serve a web page that finds named things in pictures.

    Needs cliploc[web].

    Example: cliploc serve --model mini --model ViT-B-16 --pretrained own --pretrained openai
    """
    check_installed("web", "serve")
    if flags.sam is not None:
        check_installed("sam", "--sam")
    models = cli.pair_weights(flags.model or ["mini", "mini-vit"], flags.pretrained)
    cli.check_known(name for name, _ in models)
    auth = None if flags.auth_env is None else user_in(flags.auth_env)
    cli.use_threads(flags.threads)
    from cliploc.web.find import serve as serve_page
    from cliploc.web.service import Offer, Service, with_heads

    terminal = Terminal()
    offers = [Offer(name, weights) for name, weights in models]
    most_pixels = round(flags.max_megapixels * 1e6)
    offered = with_heads(offers, flags.head or [])
    how = (options.device, options.precision, most_pixels, flags.max_seconds, flags.recipe, flags.sam, flags.queue)
    service = Service(offered, *how)
    warn_of_strangers(terminal, flags, "page")
    terminal.say(f"loading {offers[0].label}", style="dim")
    serve_page(
        service, flags.host, flags.port, auth=auth, max_bytes=round(flags.max_megabytes * 1e6),
        allow_hosts=flags.allow_host or (), debug=flags.debug, on_ready=terminal.data,
    )  # fmt: skip
    return DONE


def warn_of_strangers(terminal: Terminal, flags: ServerFlags, what: str) -> None:
    """Says that a server is open to everybody, where it listens to other machines without a password."""
    if flags.auth_env is None and flags.host not in ("127.0.0.1", "localhost", "::1"):
        terminal.say(
            f"warning: anyone who can reach {flags.host} can use this {what}: set a password with --auth-env",
            style="yellow",
        )


def user_in(variable: str) -> tuple[str, str]:
    """User and password from the environment, so that no list of processes shows them."""
    user, colon, password = os.environ.get(variable, "").partition(":")
    if not user or not colon or not password:
        raise UsageError(f"expected {variable} to hold user:password, but it does not: export {variable}=me:secret")
    return user, password
