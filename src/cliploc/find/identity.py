"""Everything that the results of a flow depend on: the identity of a run."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cliploc.find.flow import Flow
from cliploc.find.presence import VERSION as BANK_VERSION
from cliploc.find.tasks import Task
from cliploc.options import RESULT_OPTIONS
from cliploc.towers import precision_name

ELSEWHERE = {"pretrained", "method_options", "head", "second_look", "calibration", "learnt"}  # under other keys


def described(flow: Flow, task: Task, method_options: Mapping[str, Any]) -> dict[str, Any]:
    """Option → value, defaults too, of a task."""
    guide, source = flow.guide, flow.mask_source
    looks = {"bank": BANK_VERSION, "calibration": flow.calibration.document()}
    return {
        **{name: getattr(flow.options, name) for name in RESULT_OPTIONS if name not in ELSEWHERE},
        "model": flow.backbone.name,
        "weights": flow.backbone.weights_id,
        "method": task.method.name,
        "options": flow.tasks.named_options(task, method_options),
        "heads": {key: head.digest() for key, head in task.heads.items()},
        "templates": flow.texts.templates,
        "exemplars": flow.texts.exemplar_facts,
        "resize": flow.preparation.resize,
        "interpolation": flow.backbone.interpolation,
        "image_size": flow.preparation.input_hw,
        "refine": flow.refine if task.refined else (),
        **asdict(task.box_rule),
        "precision": precision_name(flow.backbone.dtype),
        "masked_precision": flow.masked.precision,
        "guide": None if guide is None else {"name": guide.name, "weights": guide.weights_id},
        "masks_by": flow.options.masks_by if source is None else source.id,
        "min_presence": flow.min_presence,
        **({"reads_apart": True} if flow.reads_apart else {}),
        **({"second_look" if flow.second_look else "first_look": looks} if flow.compares else {}),
    }
