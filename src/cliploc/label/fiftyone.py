"""cliploc as a model of FiftyOne: `dataset.apply_model(model)`. See docs/fiftyone.md."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cliploc.errors import UsageError
from cliploc.find import prompts
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.support.imports import install, not_installed
from cliploc.values import ByteArray

try:
    import fiftyone as fo
    import fiftyone.core.models as fom
except ImportError as error:
    raise not_installed(error, install("fiftyone", "this")) from None

OUTPUTS = ("detections", "instances", "segmentation", "heatmap")
# The names in manifest.json → the model; "cliploc" takes any, by its arguments.
ZOO: Mapping[str, Mapping[str, Any]] = {
    "cliploc": {},
    "cliploc-mini": {"model": "mini"},
    "cliploc-mini-vit": {"model": "mini-vit"},
}


@dataclass
class CliplocConfig:
    """What a `CliplocModel` does."""

    classes: Sequence[str]  # names to look for; "cat|kitten" are synonyms
    outputs: Sequence[str] = ("detections",)  # which labels a picture gets, some of `OUTPUTS`
    options: Mapping[str, Any] = field(default_factory=dict)  # of `Localizer`: model, method, recipe, min_score …


class CliplocModel(fom.Model):  # type: ignore[misc]  # FiftyOne has no types
    """A `Localizer` as FiftyOne applies its models.

    A single output with a single label is returned as that label. Otherwise a picture has a dict: "detections",
    "instances" (detections with masks), "segmentation", and "heatmap", or with several classes "heatmap_NAME" for each.
    FiftyOne puts the field's name before these. `mask_targets` says what the pixels of segmentations mean, for
    `dataset.mask_targets`.

    Raises:
        UsageError: classes, outputs or an option that cannot be used.
        ModelError: a model that cannot be loaded.
    """

    media_type = "image"
    ragged_batches = False  # pictures of a batch may have any sizes
    transforms = None  # the localizer prepares pictures itself …
    preprocess = False  # … so there is nothing to do before

    def __init__(self, config: CliplocConfig) -> None:
        if isinstance(config.classes, str) or not config.classes:
            raise UsageError(f"expected classes as a list of names, got {config.classes!r}: classes=['cat', 'dog']")
        unknown = [output for output in config.outputs if output not in OUTPUTS]
        if unknown or isinstance(config.outputs, str) or not config.outputs:
            raise UsageError(f"expected outputs as a list of {' and '.join(OUTPUTS)}, got {config.outputs!r}")
        self.config = config
        self.names = prompts.parse(config.classes).names
        self.mask_targets = {0: "background", **dict(enumerate(self.names, start=1))}
        self._localizer = Localizer(**config.options)

    def predict(self, arg: ByteArray) -> Any:
        """The labels of one picture, an array `[H, W, 3]` of RGB, or any other that `Localizer` takes."""
        return self.predict_all([arg])[0]

    def predict_all(self, args: Sequence[Any]) -> list[Any]:
        """The labels of several pictures; `batch_size` of the localizer says how many the model sees at once."""
        return [self._labels(result) for result in self._localizer(list(args), list(self.config.classes))]

    def _labels(self, localization: Localization) -> Any:
        labels: dict[str, Any] = {}
        for output in self.config.outputs:
            if output == "segmentation":
                labels[output] = fo.Segmentation(mask=localization.label_map())
            elif output == "heatmap":
                for name, heat in zip(self.names, localization.heatmaps, strict=True):
                    key = output if len(self.names) == 1 else f"{output}_{re.sub(r'[^0-9A-Za-z]+', '_', name)}"
                    if key in labels:  # "a-b" and "a b"
                        key = f"{key}_{len(labels)}"
                    labels[key] = fo.Heatmap(map=heat, range=[0, 1])
            else:
                labels[output] = fo.Detections(detections=_detections(localization, masks=output == "instances"))
        return next(iter(labels.values())) if len(labels) == 1 else labels


def _detections(localization: Localization, masks: bool) -> list[Any]:
    """Boxes as shares of the picture; a mask is that of the pixels in its box."""
    width, height = localization.image.size
    of_boxes = dict(localization.box_masks()) if masks else {}
    boxes, detections = localization.boxes, []
    columns = zip(boxes.xyxy.astype(float).tolist(), boxes.score.tolist(), boxes.label.tolist(), strict=True)
    for i, ((x0, y0, x1, y1), score, label) in enumerate(columns):
        more: dict[str, Any] = {}
        if masks:  # the mask's corners, so that its pixels lie where they are
            x0, y0, x1, y1 = math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
            more = {"mask": of_boxes[i][y0:y1, x0:x1]}
        relative = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
        detections.append(
            fo.Detection(label=localization.names[label], bounding_box=relative, confidence=score, **more)
        )
    return detections


# ------------------------------------------------------------------------------------------------- the zoo's functions
def download_model(model_name: str, model_path: str) -> None:
    """Writes the file by which FiftyOne knows that a model of `ZOO` is there; weights come as cliploc fetches them."""
    Path(model_path).write_text(json.dumps(ZOO[model_name]), encoding="utf-8")


def load_model(
    model_name: str,
    model_path: str,  # noqa: ARG001 - FiftyOne gives it
    classes: Sequence[str] = (),
    outputs: Sequence[str] = ("detections",),
    **options: Any,
) -> CliplocModel:
    """The model of a name of `ZOO`; classes, outputs and options as in `CliplocConfig`."""
    return CliplocModel(CliplocConfig(classes, outputs, {**ZOO[model_name], **options}))
