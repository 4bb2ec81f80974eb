"""`cliploc serve`, `review` and `label-studio`: the servers."""

import contextlib
import os
from pathlib import Path

from cliploc.cli.options import ModelFlags, WithThreads, command, flag, pair_weights, rare, refuse_unknown, use_threads
from cliploc.cli.output import DONE, say_next
from cliploc.cli.terminal import Terminal
from cliploc.errors import UsageError
from cliploc.options import RECIPES, WAITING, Options, choice
from cliploc.support.imports import refuse_without


class ServerFlags(WithThreads):
    """Of servers."""

    host: str = flag("Address to listen on; 0.0.0.0: all networks.", "127.0.0.1", metavar="ADDRESS", group="serving")
    auth_env: str | None = flag(
        "Environment variable that holds user:password.", None, metavar="VARIABLE", group="serving"
    )
    queue: int = flag("Number of jobs that may wait; more are refused.", 32, within=(1, 400), group="serving")
    allow_host: list[str] | None = flag(
        "Another host name of this server, such as that of a proxy; repeatable.", None, metavar="NAME", group="serving"
    )


class ServeFlags(ModelFlags, ServerFlags):
    """What `serve` has besides options of `Localizer`."""

    queue: int = flag("Number of searches that may wait; more are refused.", WAITING, within=(1, 400), group="serving")

    model: list[str] | None = flag(
        "Models to choose from; repeatable, the first is selected.",
        None,
        metavar="NAME",
        none="mini, mini-vit",
        group="model",
    )
    head: list[str] | None = flag(
        "Trained layers from `cliploc train` for one of the models; repeatable.", None, metavar="FILE", group="model"
    )
    recipe: str = flag(  # no file, which holds for one model
        "What runs if a visitor names no method: a method with settings that improve its boxes.",
        "default",
        metavar="|".join(RECIPES),
        check=choice("recipe", RECIPES),
        group="model",
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


@command(only=("device", "precision"))
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
    auth = None if asked.auth_env is None else _user_in(asked.auth_env)
    use_threads(asked.threads)
    from cliploc.web.find import serve as serve_page
    from cliploc.web.service import Offer, Service, with_heads

    terminal = Terminal()
    offers = [Offer(name, weights) for name, weights in models]
    most_pixels = round(asked.max_megapixels * 1e6)
    service = Service(
        with_heads(offers, asked.head or []),
        options.device,
        options.precision,
        most_pixels,
        asked.max_seconds,
        asked.recipe,
        asked.sam,
    )
    _warn_of_strangers(terminal, asked, "page")
    terminal.say(f"loading {offers[0].label}", style="dim")
    serve_page(
        service,
        asked.host,
        asked.port,
        auth=auth,
        queue=asked.queue,
        max_bytes=round(asked.max_megabytes * 1e6),
        allow_hosts=asked.allow_host or (),
        debug=asked.debug,
        on_ready=terminal.data,
    )
    return DONE


PORT = 7861


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
    refuse_without("web", "review", "starlette", "uvicorn")
    use_threads(asked.threads)
    if asked.model is not None:
        refuse_unknown([asked.model])
    serve_drafts(asked.drafts, asked.port, asked.model, asked.pretrained, options.device)
    return DONE


def serve_drafts(drafts: Path, port: int, model: str | None, pretrained: str | None, device: str | None) -> None:
    """Serves the editor until it is interrupted."""
    from cliploc.label.editor.app import HOST, application
    from cliploc.label.editor.review_folder import ReviewFolder
    from cliploc.label.editor.suggest import Suggester, options_of
    from cliploc.web.server import listen, run

    terminal = Terminal()
    with ReviewFolder.opened(drafts) as folder:
        own = folder.settings
        name, found_by = (model, {}) if model is not None else (str(own["model"]), options_of(own))
        suggester = Suggester(name, pretrained=pretrained, device=device, **found_by)
        how = "each change is saved at once" if folder.writable else f"{drafts} cannot be written: NOTHING IS SAVED"
        terminal.say(f"{len(folder.pictures):,} pictures; stop with Ctrl+C; {how}", style="dim")
        app = application(folder, suggester)
        with contextlib.suppress(KeyboardInterrupt), listen(HOST, port) as listening:  # how a server is ended
            run(app, HOST, listening, terminal.data)
    say_next(terminal, f"the annotate command of {drafts} again, which learns from the corrections and exports them")


TOKEN = "LABEL_STUDIO_API_KEY"  # the variable's name that Label Studio's own ML backends have


class LabelStudioFlags(ServerFlags):
    """What `label-studio` has besides the options of `Localizer`."""

    pictures: Path | None = flag(
        "Folder of Label Studio's local files; files below it may be read.", None, metavar="DIR", none="none"
    )
    label_studio_url: str | None = flag(
        "Label Studio's address; pictures may be downloaded from it.", None, metavar="URL", none="none"
    )
    token_env: str = flag("Environment variable that holds Label Studio's access token.", TOKEN, metavar="VARIABLE")
    learn: Path | None = flag(
        "The --out folder of `cliploc annotate` that annotations teach.", None, metavar="DIR", none="nothing is learnt"
    )
    port: int = flag("Port; 0: any free port.", 9090, within=(0, 65_535), group="serving")
    max_megabytes: float = flag("Largest file of a picture, in megabytes.", 20, within=(0.01, 2000), group="serving")
    max_megapixels: float = flag("Largest picture, in megapixels.", 120, within=(0.01, 120), group="serving")


@command()
def label_studio(asked: LabelStudioFlags, options: Options) -> int:
    """Run an ML backend for Label Studio.

    It answers with draft boxes, brushes or polygons. Needs cliploc[web].

    Example: cliploc label-studio --pictures photos
    """
    refuse_without("web", "label-studio", "starlette", "uvicorn")
    if asked.learn is not None and options.learnt is not None:
        raise UsageError("expected --learn or --learnt, got both: a folder that learns has its own lessons")
    auth = None if asked.auth_env is None else _user_in(asked.auth_env)
    use_threads(asked.threads)
    from cliploc.label.editor.review_folder import ReviewFolder
    from cliploc.label.label_studio.app import application
    from cliploc.label.label_studio.predictor import Predictor
    from cliploc.label.label_studio.task_pictures import PictureSource
    from cliploc.web.clients import Hosts
    from cliploc.web.server import listen, run

    terminal = Terminal()
    most = round(asked.max_megabytes * 1e6)
    source = PictureSource(asked.pictures, asked.label_studio_url, os.environ.get(asked.token_env), most)
    _warn_of_strangers(terminal, asked, "server")
    terminal.say(f"loading {options.model}", style="dim")
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))  # how a server is ended
        drafts = None if asked.learn is None else stack.enter_context(ReviewFolder.opened(asked.learn))
        predictor = Predictor(options, source, round(asked.max_megapixels * 1e6), drafts)
        app = application(
            predictor,
            Hosts(asked.host, asked.allow_host or ()),
            auth,
            max_bytes=max(64_000_000, 2 * most),  # a task may hold its picture
            queue=asked.queue,
            say=lambda line: terminal.say(line, style="dim"),
            drafts=drafts,
        )
        with listen(asked.host, asked.port) as listening:
            run(app, asked.host, listening, terminal.data, predictor.end)
    return DONE


def _warn_of_strangers(terminal: Terminal, asked: ServerFlags, what: str) -> None:
    """Says that a server is open to everybody, where it listens to other machines without a password."""
    if asked.auth_env is None and asked.host not in ("127.0.0.1", "localhost", "::1"):
        terminal.say(
            f"warning: anyone who can reach {asked.host} can use this {what}: set a password with --auth-env",
            style="yellow",
        )


def _user_in(variable: str) -> tuple[str, str]:
    """User and password from the environment, so that no list of processes shows them."""
    user, colon, password = os.environ.get(variable, "").partition(":")
    if not user or not colon or not password:
        raise UsageError(f"expected {variable} to hold user:password, but it does not: export {variable}=me:secret")
    return user, password
