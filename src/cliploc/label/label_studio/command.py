"""`cliploc label-studio`: an ML backend for Label Studio."""

import contextlib
import os
from pathlib import Path

from cliploc.cli.options import Port, command, flag, use_threads
from cliploc.cli.output import DONE
from cliploc.cli.terminal import Terminal
from cliploc.errors import UsageError
from cliploc.options import Options
from cliploc.support.imports import check_installed
from cliploc.web.command import Megabytes, Megapixels, ServerFlags, user_in, warn_of_strangers

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
    port: Port = flag("Port; 0: any free port.", 9090, group="serving")
    max_megabytes: Megabytes = flag("Largest file of a picture, in megabytes.", 20, group="serving")
    max_megapixels: Megapixels = flag("Largest picture, in megapixels.", 120, group="serving")


@command()
def label_studio(flags: LabelStudioFlags, options: Options) -> int:
    """Run an ML backend for Label Studio.

    It answers with draft boxes or polygons. Needs cliploc[web].

    Example: cliploc label-studio --pictures photos
    """
    check_installed("web", "label-studio", "starlette", "uvicorn")
    if flags.learn is not None and options.learnt is not None:
        raise UsageError("expected --learn or --learnt, got both: a folder that learns has its own lessons")
    auth = None if flags.auth_env is None else user_in(flags.auth_env)
    use_threads(flags.threads)
    from cliploc.label.editor.review_folder import ReviewFolder
    from cliploc.label.label_studio.app import PictureSource, Predictor, application
    from cliploc.web.server import Hosts, listen, run

    terminal = Terminal()
    most = round(flags.max_megabytes * 1e6)
    source = PictureSource(flags.pictures, flags.label_studio_url, os.environ.get(flags.token_env), most)
    warn_of_strangers(terminal, flags, "server")
    terminal.say(f"loading {options.model}", style="dim")
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))  # how a server is ended
        drafts = None if flags.learn is None else stack.enter_context(ReviewFolder.opened(flags.learn))
        predictor = Predictor(options, source, round(flags.max_megapixels * 1e6), drafts)
        app = application(
            predictor,
            Hosts(flags.host, flags.allow_host or ()),
            auth,
            max_bytes=max(64_000_000, 2 * most),  # a task may hold its picture
            queue=flags.queue,
            say=lambda line: terminal.say(line, style="dim"),
            drafts=drafts,
        )
        with listen(flags.host, flags.port) as listening:
            run(app, flags.host, listening, terminal.data, predictor.end)
    return DONE
