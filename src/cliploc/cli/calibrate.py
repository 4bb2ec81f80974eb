"""`cliploc calibrate`: scores and presence fitted to pictures with true boxes."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cliploc.cli.options import SampleFlags, WithJson, WithThreads, command, flag, use_threads
from cliploc.cli.output import DONE, LOCALIZE, SOME_FAILED, file_writable, print_result, say_next, say_problems, titled
from cliploc.cli.terminal import Terminal
from cliploc.errors import UsageError
from cliploc.options import Options, words_of
from cliploc.support.files import Inputs
from cliploc.support.imports import check_installed

if TYPE_CHECKING:
    from cliploc.runs.samples import PromptedDataset

REVIEWED = "reviewed"
OF_DATASETS = ("--split", "--subset", "--classes")


class CalibrateFlags(SampleFlags, WithThreads, WithJson):
    """What `calibrate` has besides options of `Localizer`."""

    folder: Path = flag("Pictures with true boxes.", metavar="FOLDER", positional=True)
    truth: str = flag(
        "Their layout: a name of `cliploc datasets`; or reviewed, the folder of annotate.",
        metavar=f"coco|voc|yolo|{REVIEWED}",
    )
    out: Path = flag("The file for --calibration.", metavar="FILE", group="output")


@command(leave_out=("second_look", "min_presence", "min_score", "max_boxes", "learnt", "masks_by"))
def calibrate(flags: CalibrateFlags, options: Options) -> int:
    """Fit scores and presence to your pictures.

    Every picture is asked for all names of the set. The file holds for the model and options that it was fitted with.
    If the run is stopped, the same command resumes it, from what lies in FILE.partial.

    Example: cliploc calibrate street --truth coco --model ViT-B-16 --pretrained openai --out calibration.json
    """
    check_installed("calibrate", "calibrate")
    from cliploc.evaluate import data

    if flags.truth != REVIEWED:
        data.readers.refuse_unknown(flags.truth)
    elif named := [name for name in OF_DATASETS if name in flags.given()]:
        raise UsageError(f"{named[0]} is an option of datasets, not of --truth {REVIEWED}: leave it out")
    out, terminal = flags.out, Terminal()
    file_writable(out)
    with terminal.progress(f"reading {flags.folder}", speed=True) as reporter:
        dataset = _pictures(flags)
        Inputs(sample.path for sample in dataset.samples).check_outputs([out])
        say_problems(terminal, [problem for problem in dataset.problems if problem.kind not in data.BY_DESIGN])
        reporter.phase(f"loading {options.model}")
        use_threads(flags.threads)
        from cliploc.evaluate import calibrate as job
        from cliploc.localizer import Localizer
        from cliploc.runs.store import FILE

        work = out.with_name(f"{out.name}.partial")  # removed at the end, so nothing of others may be in it
        if os.path.lexists(work) and not (work / FILE).is_file():
            raise UsageError(f"expected {work} to be free, or of a stopped run: move it away, or choose another --out")
        try:
            localizer = Localizer(**options.but(second_look=True).given())
            result = job.calibrate(localizer, dataset, work, reporter)
            result.calibration.save(out)
        except job.UnfitError:  # more pictures are another run
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)  # not after an error
    print_result(terminal, result.document(), titled(result.table()), as_json=flags.as_json)
    counts = f"{result.pictures:,} pictures, {result.boxes:,} boxes, {result.right:,} of them right"
    terminal.say(f"{counts}; written to {out}", style="dim")
    with_it = (*LOCALIZE, *words_of(options.given()), f"--calibration={out}")
    say_next(terminal, with_it, quiet=flags.as_json)
    return SOME_FAILED if result.pictures < len(dataset.samples) else DONE


def _pictures(flags: CalibrateFlags) -> PromptedDataset:
    """Pictures with true boxes: a dataset's, or those of annotate that a person has reviewed."""
    from cliploc.evaluate import data

    if flags.truth != REVIEWED:
        return data.open_prompted(flags.truth, flags.folder, flags.split, **flags.chosen())
    from cliploc.label.reviewed import reviewed_pictures

    dataset, draw = reviewed_pictures(flags.folder), data.Draw(flags.limit, flags.sample, flags.seed)
    return replace(dataset, samples=draw.of(dataset.samples, lambda one: one))
