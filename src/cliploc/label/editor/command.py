"""`cliploc review`: the editor in a browser."""

import contextlib
from pathlib import Path

from cliploc.cli.options import Port, WithThreads, check_known, command, flag, use_threads
from cliploc.cli.output import DONE
from cliploc.cli.terminal import Terminal
from cliploc.options import Options
from cliploc.support.imports import check_installed

PORT = 7861


class ReviewFlags(WithThreads):
    """What `review` has besides the device."""

    source: Path = flag(
        "The --out folder of `cliploc annotate` or `cliploc check`, or a data set: COCO's or Label Studio's JSON, "
        "CVAT's XML, a CSV table, or YOLO's or VOC's folder.",
        metavar="FOLDER|LABELS",
        positional=True,
    )
    pictures: Path | None = flag("Folder of a data set's pictures.", None, metavar="DIR", none="beside the labels")
    out: Path | None = flag(
        "Folder for its corrections.", None, metavar="DIR", none="LABELS_review, or review in a check"
    )
    port: Port = flag("Port; 0: any free port.", PORT, group="serving")
    model: str | None = flag(
        "The model that suggests boxes.", None, none="the model of the drafts", group="model", metavar="NAME"
    )
    pretrained: str | None = flag("Its weights.", None, metavar="TAG|FILE|own", group="model")


@command(only=("device",))
def review(flags: ReviewFlags, options: Options) -> int:
    """Correct boxes in a browser: drafts, or a data set.

    Move, draw, relabel, split and merge boxes; suspects of a check come first. Every change is saved at once. "Write
    exports" writes the run's files again, or the corrected set in its own format, beside the set. Needs cliploc[web].

    Example: cliploc review drafts
    """
    check_installed("web", "review", "starlette", "uvicorn")
    use_threads(flags.threads)
    if flags.model is not None:
        check_known([flags.model])
    terminal = Terminal()
    with terminal.progress("opening"):
        from cliploc.label.editor.data_set import open_set

        out, failed = open_set(flags.source, flags.pictures, flags.out)
    terminal.say_failures(failed)
    serve_drafts(out, flags.port, flags.model, flags.pretrained, options.device)
    return DONE


def serve_drafts(drafts: Path, port: int, model: str | None, pretrained: str | None, device: str | None) -> None:
    """Serves the editor until it is interrupted."""
    from cliploc.draw.html import count
    from cliploc.label.editor.app import HOST, application
    from cliploc.label.editor.review_folder import ReviewFolder, Suggester, options_of
    from cliploc.web.server import listen, run

    terminal = Terminal()
    with ReviewFolder.opened(drafts) as folder:
        settings = folder.settings
        name, found_by = str(settings["model"] if model is None else model), {}
        if model is None and not folder.of_set:
            found_by = options_of(settings)
        suggester = Suggester(name, pretrained=pretrained, device=device, **found_by)
        how = "each change is saved at once" if folder.writable else f"{drafts} cannot be written: NOTHING IS SAVED"
        app, typed = application(folder, suggester), folder.run.command
        with contextlib.suppress(KeyboardInterrupt), listen(HOST, port) as listening:  # how a server is ended
            terminal.say(f"{count(len(folder.pictures), 'picture')}; stop with Ctrl+C; {how}", style="dim")
            run(app, HOST, listening, terminal.data)
    if folder.of_set:
        step = f"{drafts}/corrected has the set as it was written last; the same command opens it again"
    else:
        step = typed or f"`cliploc annotate` into {drafts} again: it learns and exports what you corrected"
    terminal.say_next(step)
