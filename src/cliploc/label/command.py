"""`cliploc annotate`: draft boxes for a folder of pictures."""

import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from cliploc.cli import output
from cliploc.cli.options import EngineFlags, WithJson, command, flag, rare, with_exemplars
from cliploc.cli.terminal import Terminal, titled
from cliploc.errors import UsageError
from cliploc.label.editor.command import PORT, serve_drafts
from cliploc.options import AnnotateOptions, Options
from cliploc.support.imports import check_installed
from cliploc.support.reporter import SILENT


class AnnotateFlags(EngineFlags, WithJson):
    """What `annotate` has besides the options of `Localizer`."""

    pictures: str = flag(
        "A folder with its sub-folders, a pattern in quotes, or a .txt list of files.",
        metavar="FOLDER",
        positional=True,
    )
    prompt: list[str] | None = flag(
        'Name; repeatable. "cat|kitten": synonyms.', None, metavar="NAME", flags=("--prompt", "-p")
    )
    labels: Path | None = flag(
        "Read the names from a file, one per line, instead: cat|kitten @0.3.", None, metavar="FILE"
    )
    out: Path = flag("Folder for the results; a stopped run in it resumes.", metavar="DIR", group="output")
    edit: bool = rare("Correct the drafts in a browser afterwards, as `cliploc review` does.", False, group="output")


@command(
    leave_out=("text_cache",),  # a run must not depend on a cache
    defaults={"min_score": "auto"},  # as `localize` has it, also for a named method
)
def annotate(flags: AnnotateFlags, options: Options, wanted: AnnotateOptions) -> int:
    """Label a folder of pictures with draft boxes.

    Other tools read the boxes, and people correct them. If the run is stopped, the same command resumes it.

    Example: cliploc annotate photos -p dog -p "beach umbrella" --out drafts
    """
    if (flags.labels is None) == (not flags.prompt):
        got = "neither" if flags.labels is None else "both"
        raise UsageError(f"expected names with -p NAME, or a file of them with --labels, got {got}")
    if flags.edit and flags.as_json:
        raise UsageError("expected --json or --edit, got both: leave one out")
    if flags.edit:
        check_installed("web", "review", "starlette", "uvicorn")
    from cliploc.find.prompts import labels_of, read_labels
    from cliploc.formats import chosen_exports

    chosen_exports(wanted.formats)
    names = labels_of(flags.prompt or ()) if flags.labels is None else read_labels(flags.labels)
    entries, options = with_exemplars(names.entries, options)
    engine, folder = flags.parsed(), output.writable(flags.out)
    terminal = Terminal()
    start_time = time.perf_counter()
    with terminal.progress(f"loading {options.model}") as reporter:
        from cliploc.label.annotate import annotate as run
        from cliploc.runs.label_store import LabellingRun

        result = run(
            flags.pictures,
            replace(names, entries=tuple(entries)),
            folder,
            engine=engine,
            reporter=replace(reporter, failed=SILENT.failed),  # printed at the end, with those of earlier runs
            **wanted.changed(),
            **options.changed(),
        )
    with LabellingRun.open(folder) as run_file:
        run_file.command = shlex.join(["cliploc", *sys.argv[1:]])
    terminal.print_result(result.document(), titled(result.table()), as_json=flags.as_json)
    terminal.say_failures(result.failed)
    for name, reason in result.not_applied.items():
        terminal.say(f"not corrected: {name}: {reason}", style="red")
    for line in result.closing(time.perf_counter() - start_time):
        terminal.say(line, style="dim")
    if len(result.failed) == result.pictures:
        return output.NOTHING_DONE
    terminal.say_next(("cliploc", "review", flags.out), quiet=flags.as_json or flags.edit)
    if flags.edit:
        serve_drafts(folder, PORT, None, options.pretrained, options.device)
    return output.SOME_FAILED if result.failed or result.not_applied else output.DONE
