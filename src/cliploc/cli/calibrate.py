"""`cliploc calibrate`: fits scores and presence of a second look to pictures with true boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cliploc._files import Inputs, user_path
from cliploc._imports import refuse_without
from cliploc._terminal import Terminal
from cliploc.cli.options import SampleFlags, WithJson, WithThreads, command, flag, refuse_unknown_dataset, use_threads
from cliploc.cli.output import (
    DONE,
    LOCALIZE,
    SHOWN_PROBLEMS,
    SOME_FAILED,
    print_document,
    say_next,
    titled,
    writable,
)
from cliploc.config import Options, words_of
from cliploc.errors import UsageError

if TYPE_CHECKING:
    from cliploc.datasets import AskedDataset

REVIEWED = "reviewed"
TRUTHS = f"coco|voc|yolo|{REVIEWED}"


def refuse_truth(truth: str, asked: SampleFlags) -> None:
    """Refuses an unknown layout of pictures with true boxes, and options that it does not have."""
    if truth != REVIEWED:
        refuse_unknown_dataset(truth)
        return
    for name in ("--split", "--subset", "--classes"):
        if name in asked.given():
            raise UsageError(f"{name} is an option of datasets, not of --truth {REVIEWED}: leave it out")


def read_truth(truth: str, folder: Path, asked: SampleFlags) -> AskedDataset:
    """Pictures with true boxes: a dataset's, or those of annotate that a person has reviewed."""
    from cliploc.datasets import Draw, open_asked

    if truth != REVIEWED:
        return open_asked(truth, folder, asked.split, **asked.chosen())
    from cliploc.jobs.calibrate import reviewed_pictures

    return reviewed_pictures(user_path(folder), Draw(**asked.counted()))


@dataclass(frozen=True, kw_only=True)
class TruthFlags(SampleFlags, WithThreads, WithJson):
    """Of commands that learn from pictures with true boxes."""

    folder: Path = flag("Pictures with true boxes.", metavar="FOLDER", positional=True)
    truth: str = flag(
        "Their layout: a name of `cliploc datasets`; or reviewed, the folder of annotate.",
        metavar=TRUTHS,
    )


def truth_for(asked: TruthFlags, out: Path, terminal: Terminal) -> AskedDataset:
    """The pictures of a command that writes a file; tells the first problems."""
    from cliploc.datasets import BY_DESIGN

    dataset = read_truth(asked.truth, asked.folder, asked)
    Inputs(one.path for one in dataset.samples).refuse([out])
    problems = [one for one in dataset.problems if one.kind not in BY_DESIGN]
    for one in problems[:SHOWN_PROBLEMS]:
        terminal.say(f"{one.kind}: {one.source}: {one.reason}", style="yellow")
    return dataset


@dataclass(frozen=True, kw_only=True)
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
    refuse_without("calibrate", "calibrate")
    refuse_truth(asked.truth, asked)
    out = user_path(asked.out)
    writable(out.resolve().parent)
    terminal = Terminal()
    with terminal.progress(f"reading {asked.folder}", rate="pictures/s") as reporter:
        dataset = truth_for(asked, out, terminal)
        reporter.phase(f"loading {options.model}")
        use_threads(asked.threads)
        from cliploc.jobs.calibrate import calibrate as fitted
        from cliploc.jobs.folder import kept_beside
        from cliploc.localizer import Localizer

        localizer = Localizer(**options.but(second_look=True).given())
        with kept_beside(out) as work:
            result = fitted(localizer, dataset, work, reporter)
            result.calibration.save(out)
    if asked.as_json:
        print_document(result.document())
    else:
        terminal.data(titled(result.table()))
    counts = f"{result.pictures:,} pictures, {result.boxes:,} boxes, {result.right:,} of them right"
    terminal.say(f"{counts}; written to {out}", style="dim")
    with_it = (*LOCALIZE, *words_of(options.given()), f"--calibration={asked.out}")
    say_next(terminal, with_it, quiet=asked.as_json)
    return SOME_FAILED if result.pictures < len(dataset.samples) else DONE
