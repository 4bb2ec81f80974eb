"""`cliploc benchmark boxes` and `cliploc evaluate boxes`."""

from functools import partial
from pathlib import Path
from typing import Any

from cliploc import methods
from cliploc.cli.options import SampleFlags, Workers, command, flag, in_words, rare
from cliploc.cli.terminal import Terminal
from cliploc.errors import UsageError
from cliploc.evaluate.tasks import commands
from cliploc.options import OF_LOCALIZATION, Options, Share, choice

CONVENTIONS = ("wsoleval", "exact")  # as in cliploc.evaluate.metrics, which takes time to import


class BenchmarkFlags(commands.BenchmarkFlags, SampleFlags, commands.WithBaselines):
    """What `benchmark boxes` has."""

    threshold: Share | None = flag(
        "Threshold of boxes, of all methods; of one: --method 'cam(threshold=0.3)'.", None, none="each method's own",
        group="boxes",
    )  # fmt: skip
    workers: Workers | None = rare("Processes that evaluate maps.", None, none="cores - 1", group="run")
    save_maps: bool = rare("Save score maps, in the format that `evaluate` reads.", False, group="output")


@command(leave_out=(*commands.NOT_MEASURED, "threshold"), without=in_words(OF_LOCALIZATION))
def benchmark(flags: BenchmarkFlags, options: Options) -> int:
    """Measure maps and boxes by true boxes (WSOL).

    All combinations of models, methods and prompts are measured. If the run is stopped, the same command
    resumes it.

    Example: cliploc benchmark boxes --dataset wsol --root data --method cam,layer_cam --out results
    """
    from cliploc.evaluate.data import open_dataset

    baselines = tuple if flags.no_baselines else methods.baselines
    options = commands.for_true_names(options).but(threshold=flags.threshold)
    plan = commands.plan_of(flags, options, baselines, recipes=True)
    from cliploc.evaluate.tasks.boxes import job

    run = partial(job.run_benchmark, save_maps=flags.save_maps, workers=flags.workers)
    return commands.run_plan(flags, plan, run, open_dataset, job.TASK.files)


class EvaluateFlags(commands.MapsFlags, SampleFlags):
    """What `evaluate boxes` has."""

    metadata: Path | None = flag(
        "Folder with image_ids.txt, class_labels.txt, image_sizes.txt and localization.txt.", None, metavar="DIR"
    )
    dataset: str | None = flag("Instead: the dataset, of which `benchmark` saved maps.", None, metavar="NAME")
    root: Path | None = flag("Folder of that dataset.", None, metavar="DIR")
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
    Example: cliploc evaluate boxes --maps results/maps/mini_cam --dataset wsol --root data --sample 100
    """
    if (flags.metadata is None) == (flags.dataset is None) or (flags.dataset is None) != (flags.root is None):
        raise UsageError(
            "expected --metadata, or --dataset and --root: cliploc evaluate boxes --maps maps --metadata metadata"
        )
    if flags.dataset is not None:
        commands.check_dataset(flags.dataset)
    from cliploc.evaluate.data import open_dataset
    from cliploc.evaluate.tasks.evaluate import evaluate_folder

    terminal = Terminal()
    convention: Any = flags.convention
    with terminal.progress("reading metadata") as every, terminal.first_failures(every) as reporter:
        truth: Any = flags.metadata
        if flags.dataset is not None and flags.root is not None:
            truth = open_dataset(flags.dataset, flags.root, flags.split, **flags.chosen())
        result = evaluate_folder(
            flags.maps, truth, convention=convention, threshold=flags.threshold,
            predictions=flags.predictions, reporter=reporter,
        )  # fmt: skip
    return commands.print_folder(result, as_json=flags.as_json)
