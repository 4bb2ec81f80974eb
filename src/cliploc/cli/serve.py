"""`cliploc serve`: the page where one types names."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from cliploc._imports import refuse_without
from cliploc._process import share_heaps
from cliploc._terminal import Terminal
from cliploc.cli.options import (
    ModelFlags,
    ServerFlags,
    command,
    flag,
    pair_weights,
    rare,
    refuse_unknown,
    use_threads,
    user_in,
)
from cliploc.cli.output import DONE, warn_of_strangers
from cliploc.config import RECIPES, Options, choice


@dataclass(frozen=True, kw_only=True)
class ServeFlags(ModelFlags, ServerFlags):
    """What `serve` has besides options of `Localizer`."""

    model: list[str] | None = flag(
        "Models to choose from; repeatable, the first is selected.", None, none="mini, mini-vit", group="model"
    )
    head: list[str] | None = flag(
        "Trained layers from `cliploc train` for one of the models; repeatable.", None, metavar="FILE", group="model"
    )
    sam: str | None = rare(
        "A SAM or SAM 2 that can draw masks, too; needs cliploc[sam].", None, metavar="FOLDER", group="model"
    )
    port: int = flag("Port; 0: any free port.", 7860, within=(0, 65_535), group="serving")
    max_megabytes: float = rare("Largest upload, in megabytes.", 20, within=(0.01, 2000), group="serving")
    max_megapixels: float = rare("Largest picture, in megapixels.", 25, within=(0.01, 120), group="serving")
    max_seconds: float = rare(
        "Time limit of one request in seconds, without waiting time.", 300, within=(0.1, 86_400), group="serving"
    )
    rate: int = rare(
        "Requests per minute and client from other machines; 0: no limit.", 600, within=(0, 1_000_000), group="serving"
    )


@command(only=("device", "precision", "recipe"))
def serve(asked: ServeFlags, options: Options) -> int:
    """Serve a web page that finds named things in pictures.

    Needs cliploc[web].

    Example: cliploc serve --model mini --model ViT-B-16 --pretrained own --pretrained openai
    """
    refuse_without("web", "serve")
    if asked.sam is not None:
        refuse_without("sam", "--sam")
    models = pair_weights(asked.model or ["mini", "mini-vit"], asked.pretrained)
    refuse_unknown(name for name, _ in models)
    auth = None if asked.auth_env is None else user_in(asked.auth_env)
    share_heaps()
    use_threads(asked.threads)
    from cliploc.web.find import serve as serve_page
    from cliploc.web.service import Offer, Service, with_heads

    terminal = Terminal()
    offers = [Offer(name, weights) for name, weights in models]
    most_pixels = round(asked.max_megapixels * 1e6)
    recipe = str(options.recipe or "default")
    choice("recipe", RECIPES)(recipe)  # a file holds for one model, and the page has several
    service = Service(
        with_heads(offers, asked.head or []),
        options.device,
        options.precision,
        most_pixels,
        asked.max_seconds,
        recipe,
        asked.sam,
    )
    warn_of_strangers(terminal, asked, "page")
    terminal.say(f"loading {offers[0].label}", style="dim")
    serve_page(
        service,
        asked.host,
        asked.port,
        auth=auth,
        queue=asked.queue,
        max_bytes=round(asked.max_megabytes * 1e6),
        allow_hosts=asked.allow_host or (),
        rate=asked.rate,
        debug=asked.debug,
        on_ready=lambda address: terminal.data(Text(address)),
    )
    return DONE
