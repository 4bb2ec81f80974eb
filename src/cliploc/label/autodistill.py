"""cliploc as a base model of Autodistill, which labels pictures to train another model. See docs/fiftyone.md."""

from typing import Any

from PIL import Image

from cliploc.detector import Detector
from cliploc.localizer import Localizer
from cliploc.support.imports import install, not_installed
from cliploc.values import ByteArray

try:
    from autodistill.detection import CaptionOntology, DetectionBaseModel
except ImportError as error:
    raise not_installed(error, install("autodistill", "this")) from None


class Cliploc(DetectionBaseModel):  # type: ignore[misc]  # Autodistill has no types
    """Finds an ontology's prompts: `Cliploc(CaptionOntology({"cat|kitten": "cat"})).label("photos", ".jpg")`.

    Args:
        ontology: prompt → class; "cat|kitten" are synonyms. `class_id` counts its prompts.
        **options: of `Localizer`: model, method, recipe, min_score …

    Raises:
        UsageError: a prompt or option that cannot be used.
        ModelError: a model that cannot be loaded.
    """

    def __init__(self, ontology: CaptionOntology, **options: Any) -> None:
        self.ontology = ontology
        self._detector = Detector(Localizer(**options), ontology.prompts())

    def predict(self, input: str | ByteArray | Image.Image) -> Any:
        """The boxes of one picture: a path, a PIL image, or an array as OpenCV reads it (BGR)."""
        return self._detector(input)
