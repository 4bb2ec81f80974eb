"""`cliploc benchmark faithfulness` and `cliploc evaluate faithfulness`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cliploc.cli import output
from cliploc.cli.options import Flags, SampleFlags, command, flag, rare
from cliploc.cli.terminal import Terminal, grid
from cliploc.evaluate.tasks import commands
from cliploc.options import FaithfulnessOptions, Options, parse_list

METRICS = ("deletion", "insertion")  # where none are named
BASELINES = ("centre_gaussian", "random")  # an area means something only beside those of baselines
OF_MODEL = ("model", "pretrained", "device", "precision", "masked_precision", "templates", "batch_size")


class MetricFlags(Flags):
    """Of both commands."""

    metric: list[str] | None = rare(
        "Metrics; repeatable. See docs/faithfulness.md.", None, metavar="NAME,NAME", none=",".join(METRICS),
        group="faithfulness",
    )  # fmt: skip


def metric_names(texts: Sequence[str] | None) -> list[str]:
    """Metrics of one or several `--metric NAME,NAME`; the default ones where there is none."""
    from cliploc.evaluate.tasks.faithfulness.metrics import faithfulness_metrics

    names = [name for text in texts or () for name in parse_list(text)]
    for name in names:
        faithfulness_metrics.check_known(name)
    return names or list(METRICS)


class BenchmarkFlags(commands.BenchmarkFlags, SampleFlags, MetricFlags, commands.WithBaselines):
    """What `benchmark faithfulness` has."""


@command(leave_out=(*commands.NOT_MEASURED, *commands.OF_BOXES))
def benchmark(flags: BenchmarkFlags, options: Options, protocol: FaithfulnessOptions) -> int:
    """Measure whether maps show what the model uses.

    All combinations of models, methods and prompts are measured. If the run is stopped, the same command resumes it.

    Example: cliploc benchmark faithfulness --dataset wsol --root data --method cam --steps 28 --out results
    """
    metrics = metric_names(flags.metric)
    baselines = tuple if flags.no_baselines else lambda: BASELINES
    plan = commands.plan_of(flags, commands.for_true_names(options), baselines)
    from cliploc.evaluate.data import open_dataset
    from cliploc.evaluate.tasks.faithfulness import job
    from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics

    each_once = [metric.name for metric in chosen_metrics(metrics)]  # in a fixed order
    run = partial(job.run_faithfulness, metrics=each_once, options=protocol)
    return commands.run_plan(flags, plan, run, open_dataset, job.TASK.files)


class EvaluateFlags(commands.MapsFlags, SampleFlags, MetricFlags):
    """What `evaluate faithfulness` has besides options of models and protocols."""

    dataset: str = flag("Dataset with the pictures.", "wsol", metavar="NAME")
    root: Path = flag("Folder of that dataset.", metavar="DIR")


@command(only=OF_MODEL)
def evaluate(flags: EvaluateFlags, options: Options, protocol: FaithfulnessOptions) -> int:
    """Measure whether score maps show what a model uses.

    Example: cliploc evaluate faithfulness --maps maps --dataset wsol --root data --steps 28
    """
    commands.check_dataset(flags.dataset)
    names = metric_names(flags.metric)
    from cliploc.evaluate.data import open_dataset
    from cliploc.evaluate.tasks.faithfulness.job import evaluate_maps
    from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
    from cliploc.find import prompts

    chosen_metrics(names, with_method=False)  # refused before a model is loaded
    prompts.resolve_templates(options.templates)
    terminal = Terminal()
    with terminal.progress(f"reading {flags.dataset}") as every, terminal.first_failures(every) as reporter:
        opened = open_dataset(flags.dataset, flags.root, flags.split, **flags.chosen())
        result = evaluate_maps(flags.maps, opened, options, metrics=names, protocol=protocol, reporter=reporter)
    [summary] = result.document["settings"].values()
    terminal.print_result(result.document, grid(result.lines), as_json=flags.as_json)
    measured = f"{summary['evaluated']} of {summary['images']} pictures measured by {result.document['model']}"
    terminal.say(measured, style="dim")
    return output.SOME_FAILED if summary["failed"] else output.DONE
