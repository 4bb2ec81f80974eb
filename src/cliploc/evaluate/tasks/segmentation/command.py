"""`cliploc benchmark segmentation` and `cliploc evaluate segmentation`."""

from functools import partial
from pathlib import Path

from cliploc.cli.options import DrawnFlags, WithJson, command, flag, rare
from cliploc.cli.terminal import Terminal
from cliploc.errors import UsageError
from cliploc.evaluate.tasks import commands
from cliploc.options import Options, SegmentationOptions

TEMPLATES = "openai-80"  # as papers use
# A protocol has its own rules for these.
OF_VIEWS = ("background", "image_size", "scales", "windows", "flip", "learnt")


class BenchmarkFlags(commands.BenchmarkFlags):
    """What `benchmark segmentation` has."""

    save_maps: bool = rare("Save label maps, in the format that `evaluate` reads.", False, group="output")


@command(leave_out=(*commands.NOT_MEASURED, *commands.OF_BOXES, *OF_VIEWS))
def benchmark(flags: BenchmarkFlags, options: Options, protocol: SegmentationOptions) -> int:
    """Measure classes of pixels by true label maps (mIoU).

    All combinations of models, methods and prompts are measured. If the run is stopped, the same command resumes it.

    Example: cliploc benchmark segmentation --dataset voc21 --root data --method sclip --out results
    """
    plan = commands.plan_of(flags, commands.for_true_names(options), labelled=True, templates=TEMPLATES)
    from cliploc.evaluate.data import open_labelled
    from cliploc.evaluate.tasks.segmentation import job
    from cliploc.find.segmentation.protocol import protocol_of

    run = partial(job.run_segmentation, protocol=protocol_of(flags.dataset, protocol), save_maps=flags.save_maps)
    return commands.run_plan(flags, plan, run, open_labelled, job.TASK.files)


class EvaluateFlags(DrawnFlags, WithJson):
    """What `evaluate segmentation` has."""

    predictions: Path = flag("Folder of label maps, <id>.png.", metavar="DIR")
    dataset: str | None = flag("Dataset with the true label maps.", None, metavar="NAME")
    root: Path | None = flag("Folder of that dataset.", None, metavar="DIR")
    truth: Path | None = rare(
        "Folder of true label maps instead of a dataset: <id>.png, 255 for no label.", None, metavar="DIR"
    )
    class_list: Path | None = rare(
        "With --truth: the class names, one per line, from label 0 on.", None, metavar="FILE"
    )


@command()
def evaluate(flags: EvaluateFlags) -> int:
    """Compare label maps with true ones (mIoU).

    Example: cliploc evaluate segmentation --predictions labels --dataset voc21 --root data
    """
    if flags.dataset is not None:
        commands.check_dataset(flags.dataset, labelled=True)
    from cliploc.evaluate.data import open_labelled
    from cliploc.evaluate.tasks.segmentation.job import evaluate_labels, folder_of_truths

    terminal, drawn = Terminal(), flags.limit or flags.sample or flags.split
    with terminal.progress("reading label maps") as every, terminal.first_failures(every) as reporter:
        if flags.dataset is not None and flags.root is not None and flags.truth is None:
            truth = open_labelled(flags.dataset, flags.root, flags.split, **flags.chosen())
        elif flags.truth is not None and flags.class_list is not None and not (flags.dataset or drawn):
            truth = folder_of_truths(flags.truth, flags.class_list)
        else:
            raise UsageError("expected --dataset with --root, or only --truth with --class-list: give one pair")
        result = evaluate_labels(flags.predictions, truth, reporter=reporter)
    return commands.print_folder(result, result.document(), as_json=flags.as_json)
