"""`cliploc check`: which labels of a data set are wrong?"""

from pathlib import Path

from cliploc.cli.options import WithJson, WithThreads, command, flag, use_threads
from cliploc.cli.output import DONE, SOME_FAILED, print_document, writable
from cliploc.cli.terminal import Terminal, titled
from cliploc.options import Options


class CheckFlags(WithThreads, WithJson):
    """What `check` has besides options of `Localizer`."""

    labels: Path = flag(
        "COCO's or Label Studio's JSON, CVAT's XML, a CSV table, or a folder: YOLO's, VOC's, or one of class folders.",
        metavar="LABELS",
        positional=True,
    )
    pictures: Path | None = flag("Folder of the pictures.", None, metavar="DIR", none="beside the labels")
    out: Path = flag("Folder for the results; a stopped run in it resumes.", metavar="DIR", group="output")


@command(only=("model", "pretrained", "device", "precision", "text_cache"))
def check(flags: CheckFlags, options: Options) -> int:
    """Find the wrong labels of a data set.

    Ranks wrong names, badly placed boxes, missing and double ones, each with the chance that it is wrong. The set is
    not changed.

    Example: cliploc check instances.json --pictures photos --out checked
    """
    terminal = Terminal()
    out = writable(flags.out)
    with terminal.progress(f"loading {options.model}") as every, terminal.first_failures(every) as reporter:
        from cliploc.label.checking import job

        use_threads(flags.threads)
        checked = job.check(flags.labels, flags.pictures, out, reporter=reporter, **options.changed())
    if flags.as_json:
        print_document(checked.document())
    else:
        for table in checked.tables():
            terminal.listing(titled(table))
            terminal.data("")
    terminal.say(f"{checked.summary()}, {checked.computed:,} of these pictures read now", style="dim")
    terminal.say_next(f"open {out / job.PAGE}", quiet=flags.as_json)
    return SOME_FAILED if checked.failed else DONE
