"""`cliploc benchmark segmentation` and `cliploc evaluate segmentation`."""

from functools import partial
from pathlib import Path

from cliploc.cli.options import DrawnFlags, WithJson, command, flag, rare
from cliploc.cli.terminal import Terminal
from cliploc.evaluate.tasks import commands
from cliploc.options import Options, SegmentationOptions

TEMPLATES = "openai-80"  # as papers use
# A protocol has its own rules for these.
OF_VIEWS = ("image_size", "scales", "windows", "flip", "learnt")


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
    dataset: str = flag("Dataset with the true label maps.", metavar="NAME")
    root: Path = flag("Folder of that dataset.", metavar="DIR")


@command()
def evaluate(flags: EvaluateFlags) -> int:
    """Compare label maps with true ones (mIoU).

    Example: cliploc evaluate segmentation --predictions labels --dataset voc21 --root data
    """
    commands.check_dataset(flags.dataset, labelled=True)
    from cliploc.evaluate.data import open_labelled
    from cliploc.evaluate.tasks.segmentation.job import evaluate_labels

    terminal = Terminal()
    with terminal.progress("reading label maps") as every, terminal.first_failures(every) as reporter:
        truth = open_labelled(flags.dataset, flags.root, flags.split, **flags.chosen())
        result = evaluate_labels(flags.predictions, truth, reporter=reporter)
    return commands.print_folder(result, as_json=flags.as_json)
