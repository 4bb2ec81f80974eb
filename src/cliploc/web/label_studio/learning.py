"""Label Studio's events: what a person annotated goes into an annotated folder, which learns from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from cliploc.errors import UsageError
from cliploc.jobs.review_folder import ReviewFolder
from cliploc.web.label_studio.task_pictures import short

ANNOTATED = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED")
TRAIN = "START_TRAINING"


class Event(Struct):
    """The body of /webhook and /train, as far as it is used."""

    action: str = TRAIN
    task: dict[str, Any] = {}
    annotation: Any = None  # of several events; only `ANNOTATED` has one with its task
    annotations: list[dict[str, Any]] = []  # of /train: annotated tasks


def learn(folder: ReviewFolder, event: Mapping[str, Any]) -> list[str]:
    """Takes an event, learns in the background if it is time; problems are only said, as Label Studio waits."""
    action, tasks = event.get("action", TRAIN), event.get("annotations", [])
    if action in ANNOTATED:
        tasks = [{**event.get("task", {}), "annotations": [event.get("annotation")]}]
    elif action != TRAIN:
        return []
    said = []
    try:
        read = folder.correct(tasks)
        said += [f"{name}: corrected" for name in read.pictures]
        said += [f"{short(name)}: nothing is learnt from it: {why}" for name, why in read.problems.items()]
        if action == TRAIN:
            folder.learning.now()
    except UsageError as error:
        said.append(str(error))
    except OSError as error:
        said.append(f"{folder.out} cannot be written: {error.strerror or error}: nothing is learnt from this")
    return [*said, folder.learning.state()["said"]]
