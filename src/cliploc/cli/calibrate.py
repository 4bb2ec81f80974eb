"""`cliploc calibrate`: scores and presence fitted to pictures with true boxes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
    from cliploc.localizer import Localizer
    from cliploc.runs.samples import PromptedDataset
    from cliploc.support.reporter import Reporter


REVIEWED = "reviewed"
TRUTHS = f"coco|voc|yolo|{REVIEWED}"


def refuse_truth(truth: str, asked: SampleFlags) -> None:
    """Refuses an unknown layout of pictures with true boxes, and options that it does not have."""
    if truth != REVIEWED:
        from cliploc.evaluate.data import readers

        readers.refuse_unknown(truth)
        return
    for name in ("--split", "--subset", "--classes"):
        if name in asked.given():
            raise UsageError(f"{name} is an option of datasets, not of --truth {REVIEWED}: leave it out")


def read_truth(truth: str, folder: Path, asked: SampleFlags) -> PromptedDataset:
    """Pictures with true boxes: a dataset's, or those of annotate that a person has reviewed."""
    from cliploc.evaluate.data import Draw, open_asked

    if truth != REVIEWED:
        return open_asked(truth, folder, asked.split, **asked.chosen())
    from cliploc.label.reviewed import reviewed_pictures

    dataset = reviewed_pictures(folder)
    return replace(dataset, samples=Draw(asked.limit, asked.sample, asked.seed).of(dataset.samples, lambda one: one))


class TruthFlags(SampleFlags, WithThreads, WithJson):
    """Of commands that learn from pictures with true boxes."""

    folder: Path = flag("Pictures with true boxes.", metavar="FOLDER", positional=True)
    truth: str = flag(
        "Their layout: a name of `cliploc datasets`; or reviewed, the folder of annotate.", metavar=TRUTHS
    )


@contextmanager
def _learning(
    asked: TruthFlags, out: Path, options: Options, terminal: Terminal
) -> Iterator[tuple[Localizer, PromptedDataset, Path, Reporter]]:
    """What a command that writes a file learns with: model, pictures, and a folder that a stopped run resumes from."""
    file_writable(out)
    with terminal.progress(f"reading {asked.folder}", speed=True) as reporter:
        from cliploc.evaluate.data import BY_DESIGN

        dataset = read_truth(asked.truth, asked.folder, asked)
        Inputs(sample.path for sample in dataset.samples).check_outputs([out])
        say_problems(terminal, [problem for problem in dataset.problems if problem.kind not in BY_DESIGN])
        reporter.phase(f"loading {options.model}")
        use_threads(asked.threads)
        from cliploc.evaluate.calibrate import UnfitError
        from cliploc.localizer import Localizer
        from cliploc.runs.store import FILE

        work = out.with_name(f"{out.name}.partial")  # removed at the end, so nothing of others may be in it
        if os.path.lexists(work) and not (work / FILE).is_file():
            raise UsageError(f"expected {work} to be free, or of a stopped run: move it away, or choose another --out")
        try:
            yield Localizer(**options.given()), dataset, work, reporter
        except UnfitError:  # more pictures are another run
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)  # not after an error


class CalibrateFlags(TruthFlags):
    """What `calibrate` has besides options of `Localizer`."""

    out: Path = flag("The file for --calibration.", metavar="FILE", group="output")


@command(leave_out=("second_look", "min_presence", "min_score", "max_boxes", "learnt", "masks_by"))
def calibrate(asked: CalibrateFlags, options: Options) -> int:
    """Fit scores and presence to your pictures.

    Every picture is asked for all names of the set. The file holds for the model and options that it was fitted with.
    If the run is stopped, the same command resumes it, from what lies in FILE.partial.

    Example: cliploc calibrate street --truth coco --model ViT-B-16 --pretrained openai --out calibration.json
    """
    check_installed("calibrate", "calibrate")
    refuse_truth(asked.truth, asked)
    out, terminal = asked.out, Terminal()
    with _learning(asked, out, options.but(second_look=True), terminal) as (localizer, dataset, work, reporter):
        from cliploc.evaluate.calibrate import calibrate as fitted

        result = fitted(localizer, dataset, work, reporter)
        result.calibration.save(out)
    print_result(terminal, result.document(), titled(result.table()), as_json=asked.as_json)
    counts = f"{result.pictures:,} pictures, {result.boxes:,} boxes, {result.right:,} of them right"
    terminal.say(f"{counts}; written to {out}", style="dim")
    with_it = (*LOCALIZE, *words_of(options.given()), f"--calibration={asked.out}")
    say_next(terminal, with_it, quiet=asked.as_json)
    return SOME_FAILED if result.pictures < len(dataset.samples) else DONE
