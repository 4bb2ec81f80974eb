"""`cliploc benchmark presence`."""

from typing import Any

from cliploc.cli.options import SampleFlags, command, flag
from cliploc.evaluate.tasks import commands
from cliploc.options import Options, choice

NEGATIVES = ("random", "popular", "confusable", "all")  # as in cliploc.evaluate.data, which takes time to import


class BenchmarkFlags(commands.BenchmarkFlags, SampleFlags):
    """What `benchmark presence` has."""

    negatives: str = flag(
        "Absent names that are asked: as many as are there, drawn, most frequent or most often together with them; or "
        "all.",
        "all", metavar="|".join(NEGATIVES), check=choice("negatives", NEGATIVES),
    )  # fmt: skip

    def chosen(self) -> dict[str, Any]:
        """How `open_prompted` takes them."""
        return {**super().chosen(), "negatives": self.negatives}


@command(leave_out=commands.NOT_MEASURED)
def benchmark(flags: BenchmarkFlags, options: Options) -> int:
    """Measure which of many names are found in a picture.

    All combinations of models, methods and prompts are measured. If the run is stopped, the same command
    resumes it.

    Example: cliploc benchmark presence --dataset coco --root data --negatives confusable --out results
    """
    plan = commands.plan_of(flags, options, recipes=True)
    from cliploc.evaluate.data import open_prompted
    from cliploc.evaluate.tasks.presence import job

    return commands.run_plan(flags, plan, job.run_presence, open_prompted, job.TASK.files)
