"""`cliploc tune`: chooses a model's recipe on pictures with true boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from cliploc._files import user_path
from cliploc._imports import refuse_without
from cliploc._terminal import Terminal, printable
from cliploc.cli.calibrate import TruthFlags, refuse_truth, truth_for
from cliploc.cli.options import command, flag, use_threads
from cliploc.cli.output import DONE, SOME_FAILED, print_document, titled, writable
from cliploc.config import Options
from cliploc.errors import UsageError

OF_TUNED = (
    "model", "pretrained", "recipe", "resize", "image_size", "flip", "device", "precision", "engine_backend",
    "batch_size",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TuneFlags(TruthFlags):
    """What `tune` has besides options of `Localizer`."""

    out: Path = flag("The file for --recipe, a .json.", metavar="FILE", group="output")


@command(only=OF_TUNED)
def tune(asked: TuneFlags, options: Options) -> int:
    """Choose a model's recipe on your pictures.

    Scales, windows, refinement, threshold and divided regions are compared with those of the present recipe. What is
    chosen is measured on pictures that did not choose it, and kept only if it gains more than the noise. Then the
    second look is calibrated. If the run is stopped, the same command resumes it, from what lies in FILE.partial.

    Example: cliploc tune street --truth coco --model ViT-B-16 --pretrained openai --out street.json
    """
    refuse_without("calibrate", "tune")
    refuse_truth(asked.truth, asked)
    out = user_path(asked.out)
    if out.suffix != ".json":
        raise UsageError(f"expected --out as FILE.json, which --recipe takes, got {asked.out}: add .json")
    writable(out.resolve().parent)
    terminal = Terminal()
    with terminal.progress(f"reading {asked.folder}", rate="pictures/s") as reporter:
        dataset = truth_for(asked, out, terminal)
        reporter.phase(f"loading {options.model}")
        use_threads(asked.threads)
        from cliploc.jobs.folder import kept_beside
        from cliploc.jobs.tune import tune as tuned
        from cliploc.localizer import Localizer

        localizer = Localizer(**options.given())
        with kept_beside(out) as work:
            result = tuned(localizer, dataset, work, reporter)
            content = result.save(out)
    if asked.as_json:
        print_document(content)
    else:
        terminal.data(titled(result.table()))
        for line in result.legend():
            terminal.data(Text(printable(line)))
        if result.calibrated is not None:
            terminal.data(titled(result.calibrated.table()))
    terminal.say(f"written to {out}, for --recipe", style="dim")
    return SOME_FAILED if result.failed else DONE
