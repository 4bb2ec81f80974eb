"""`cliploc benchmark boxes` and `cliploc evaluate boxes`."""

from functools import partial
from pathlib import Path
from typing import Any

from cliploc import methods
from cliploc.cli.options import SampleFlags, Workers, command, flag, in_words, rare
from cliploc.cli.terminal import Terminal
from cliploc.evaluate.tasks import commands
from cliploc.options import OF_LOCALIZATION, Options, Share, choice

CONVENTIONS = ("wsoleval", "exact")  # as in cliploc.evaluate.metrics, which takes time to import


class BenchmarkFlags(commands.BenchmarkFlags, SampleFlags, commands.WithBaselines, commands.WithThresholds):
    """What `benchmark boxes` has."""

    workers: Workers | None = rare("Processes that evaluate maps.", None, none="cores - 1", group="run")
    save_maps: bool = rare("Save score maps, in the format that `evaluate` reads.", False, group="output")


@command(leave_out=commands.NOT_MEASURED, without=in_words(OF_LOCALIZATION))
def benchmark(flags: BenchmarkFlags, options: Options) -> int:
    """Measure maps and boxes by true boxes (WSOL).

    All combinations of models, methods, prompts and thresholds are measured. If the run is stopped, the same command
    resumes it.

    Example: cliploc benchmark boxes --dataset wsol --root data --method cam,layer_cam --out results
    """
    from cliploc.evaluate.data import open_dataset

    baselines = tuple if flags.no_baselines else methods.baselines
    options = commands.for_true_names(options)
    plan = commands.plan_of(flags, options, baselines, boxes=flags.threshold or ["own"])
    from cliploc.evaluate.tasks.boxes import job

    run = partial(job.run_benchmark, save_maps=flags.save_maps, judges=flags.workers)
    return commands.run_plan(flags, plan, run, open_dataset, job.TASK.files)


class EvaluateFlags(commands.MapsFlags):
    """What `evaluate boxes` has."""

    metadata: Path = flag(
        "Folder with image_ids.txt, class_labels.txt, image_sizes.txt and localization.txt.", metavar="DIR"
    )
    convention: str = flag(
        "Box convention: as the WSOL evaluation, or exact.", "wsoleval", metavar="|".join(CONVENTIONS), group="boxes",
        check=choice("convention", CONVENTIONS),
    )  # fmt: skip
    threshold: Share | None = flag(
        "Threshold of the metrics that need one.", None, none="the best on these pictures", group="boxes"
    )
    predictions: Path | None = flag(
        "Lines image_id,class,class,... best first, for Top-1 and Top-5.", None, metavar="CSV"
    )


@command()
def evaluate(flags: EvaluateFlags) -> int:
    """Compare score maps with true boxes (WSOL).

    Example: cliploc evaluate boxes --maps maps --metadata metadata --threshold 0.4
    """
    from cliploc.evaluate.tasks.evaluate import evaluate_folder

    terminal = Terminal()
    convention: Any = flags.convention
    with terminal.progress("reading metadata") as every, terminal.first_failures(every) as reporter:
        result = evaluate_folder(
            flags.maps, flags.metadata, convention=convention, threshold=flags.threshold,
            predictions=flags.predictions, reporter=reporter,
        )  # fmt: skip
    return commands.print_folder(result, result.document(convention), as_json=flags.as_json)
