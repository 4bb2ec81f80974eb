"""What the runs that ask pictures for names have in common: presence benchmarks, calibrations and tunings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cliploc import prompts
from cliploc.datasets import AskedPicture
from cliploc.geometry import iou_matrix
from cliploc.jobs.plan import Setting
from cliploc.jobs.worker import PictureJudge
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.pipeline.prepare import Request
from cliploc.reporter import Reporter
from cliploc.values import GOOD_IOU, Boxes, FloatArray

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Seen:
    """A picture, and what it is asked for."""

    sample: AskedPicture
    labels: list[int]  # asked, of names that the model knows

    def truth(self, size_wh: tuple[int, int]) -> dict[int, FloatArray]:
        """Place among `labels` → its true boxes `[m, 4]`, in pixels of the picture of this size; of those there."""
        scale = np.array([*size_wh] * 2) / np.array([*self.sample.size_wh] * 2)
        there = self.sample.truth
        return {p: there[label] * scale for p, label in enumerate(self.labels) if label in there}


class AskingJudge(PictureJudge):
    """A judge of what a localizer finds of the names that pictures are asked for."""

    task = "presence"
    keep_maps: ClassVar[bool] = False

    def __init__(self, classes: Sequence[str], *of_setup: Any) -> None:
        super().__init__(*of_setup)
        self.refuse_thresholds(self.task)
        if (tau := self.settings[0].threshold) is not None:
            self.localizer = Localizer(**self.localizer.options.but(threshold=tau).given())
        self._classes = classes
        reasons = self.localizer.unknown_names(classes)
        self.unknown = {label for label, name in enumerate(prompts.parse(classes).names) if name in reasons}
        if reasons:
            self.note = (
                f"{self.localizer.backbone.name} does not know {len(reasons)} of {len(classes)} names, such as "
                f"{next(iter(reasons))!r}: they are counted, but not in the numbers"
            )

    def describe(self, setting: Setting) -> dict[str, Any]:
        """See `Judge.describe`; all of the localizer's description."""
        said = self.localizer.describe(setting.method, setting.options)
        return self.described(setting, said, threshold_given=setting.threshold is not None)

    def look(self, sample: AskedPicture, read: None) -> Seen:  # noqa: ARG002
        """See `PictureJudge.look`."""
        return Seen(sample, [label for label in sample.labels if label not in self.unknown])

    def maps(self, seen: Seen, methods: Sequence[str], reporter: Reporter) -> Mapping[str, Localization | None]:
        """See `PictureJudge.maps`; the result of each method, None where no name is known."""
        if not seen.labels:
            return dict.fromkeys(methods)
        request = Request(seen.sample.id, seen.sample.path, [self._classes[label] for label in seen.labels])
        asked = {name: self.methods[name] for name in methods}
        [result] = self.localizer.run([request], asked, reporter=reporter, absent_maps=False, keep_maps=self.keep_maps)
        if result.error is not None:
            raise result.error
        return result.found


def right_boxes(boxes: Boxes, truth: Mapping[int, npt.NDArray[Any]]) -> Bools:
    """`[n]`, whether each box has IoU ≥ 0.5 with a true box `[m, 4]` of its label."""
    ious = [
        iou_matrix(box[None], truth[label]).max(initial=0) if label in truth else 0.0
        for box, label in zip(boxes.xyxy, boxes.label.tolist(), strict=True)
    ]
    return np.array(ious, np.float64) >= GOOD_IOU
