"""`cliploc benchmark` and `cliploc evaluate`: the tasks' commands, each of which stands in its task's folder."""

from cliploc.cli.commands import tasks
from cliploc.evaluate.tasks.boxes import command as boxes
from cliploc.evaluate.tasks.faithfulness import command as faithfulness
from cliploc.evaluate.tasks.presence import command as presence
from cliploc.evaluate.tasks.segmentation import command as segmentation

benchmark = tasks(
    "Evaluate methods on a dataset.",
    boxes=boxes.benchmark,
    segmentation=segmentation.benchmark,
    faithfulness=faithfulness.benchmark,
    presence=presence.benchmark,
)
evaluate = tasks(
    "Evaluate score maps or label maps of any tool.",
    boxes=boxes.evaluate,
    segmentation=segmentation.evaluate,
    faithfulness=faithfulness.evaluate,
)
