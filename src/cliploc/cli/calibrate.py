"""`cliploc calibrate`: scores and presence fitted to pictures with true boxes."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from cliploc import Options, UsageError
from cliploc.cli import options as cli
from cliploc.cli import output
from cliploc.cli.terminal import Terminal, titled
from cliploc.options import words_of
from cliploc.runs.picture_files import PromptedDataset
from cliploc.runs.store import FILE
from cliploc.support.files import Inputs
from cliploc.support.imports import check_installed

REVIEWED = "reviewed"


class CalibrateFlags(cli.SampleFlags, cli.WithThreads, cli.WithJson):
    """What `calibrate` has besides options of `Localizer`."""

    folder: Path = cli.flag("Pictures with true boxes.", metavar="FOLDER", positional=True)
    truth: str = cli.flag(
        "Their layout: a name of `cliploc datasets`; or reviewed, the folder of annotate.",
        metavar=f"coco|voc|yolo|{REVIEWED}",
    )
    out: Path = cli.flag("The file for --calibration.", metavar="FILE", group="output")


@cli.command(leave_out=("second_look", "min_presence", "min_score", "max_boxes", "learnt", "masks_by"))
def calibrate(flags: CalibrateFlags, options: Options) -> int:
    """Fit scores and presence to your pictures.

    All names of the set are looked for in every picture. The file holds for the model and options that it was fitted
    with. If the run is stopped, the same command resumes it, from what lies in FILE.partial.

    Example: cliploc calibrate street --truth coco --model ViT-B-16 --pretrained openai --out calibration.json
    """
    check_installed("calibrate", "calibrate")
    _check_truth(flags)
    out, terminal = flags.out, Terminal()
    output.file_writable(out)
    work = out.with_name(f"{out.name}.partial")
    with terminal.progress(f"reading {flags.folder}") as reporter:
        from cliploc.evaluate import calibrate as calibration
        from cliploc.evaluate.data import BY_DESIGN
        from cliploc.localizer import Localizer

        dataset = _dataset(flags)
        Inputs(sample.path for sample in dataset.samples).check_outputs([out])
        terminal.say_problems([problem for problem in dataset.problems if problem.kind not in BY_DESIGN])
        reporter.phase(f"loading {options.model}")
        cli.use_threads(flags.threads)
        if os.path.lexists(work) and not (work / FILE).is_file():  # it is removed at the end
            raise UsageError(f"expected {work} to be free, or of a stopped run: move it away, or choose another --out")
        try:
            localizer = Localizer(**options.but(second_look=True).changed())
            result = calibration.calibrate(localizer, dataset, work, reporter)
            result.calibration.save(out)
        except calibration.UnfitError:  # more pictures are another run
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)  # not after another error
    terminal.print_result(result.document(), titled(result.table()), as_json=flags.as_json)
    counts = f"{result.pictures:,} pictures, {result.boxes:,} boxes, {result.right:,} of them right"
    terminal.say(f"{counts}; written to {out}", style="dim")
    look = ("--second-look",) if options.method else ()  # which recipes have
    calibrated = (*output.LOCALIZE, *words_of(options.changed()), *look, f"--calibration={out}")
    terminal.say_next(calibrated, quiet=flags.as_json)
    return output.SOME_FAILED if result.pictures < len(dataset.samples) else output.DONE


def _check_truth(flags: CalibrateFlags) -> None:
    """An unknown layout of pictures with true boxes is an error, and an option that it does not have."""
    if flags.truth != REVIEWED:
        from cliploc.evaluate.data import readers

        readers.check_known(flags.truth)
        return
    for name in ("--split", "--subset", "--classes"):
        if name in flags.changed():
            raise UsageError(f"{name} is an option of datasets, not of --truth {REVIEWED}: leave it out")


def _dataset(flags: CalibrateFlags) -> PromptedDataset:
    """Pictures with true boxes: a dataset's, or those of annotate that a person has reviewed."""
    from cliploc.evaluate.data import Draw, open_prompted

    if flags.truth != REVIEWED:
        return open_prompted(flags.truth, flags.folder, flags.split, **flags.chosen())
    from cliploc.label.results import reviewed_pictures

    dataset = reviewed_pictures(flags.folder)
    return replace(dataset, samples=Draw(flags.limit, flags.sample, flags.seed).of(dataset.samples, lambda one: one))
