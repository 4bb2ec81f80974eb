"""Insertion: how fast the score rises when the hottest pixels are shown."""

from typing import ClassVar

from cliploc.evaluate.tasks.faithfulness import measure as base
from cliploc.evaluate.tasks.faithfulness.metrics.deletion import Deletion

AXIS = base.Axis("share of pixels shown")


@base.faithfulness_metric
class Insertion(Deletion):
    """The area under the score of a blurred picture while its hottest pixels are uncovered; RISE's protocol.

    The blur is a convolution of the normalised picture with an 11×11 Gaussian of σ 5, reflected at the kernel's edges,
    with zeros beyond the picture's. Steps, score and area are those of `deletion`.
    """

    name = "insertion"
    position = 2
    numbers: ClassVar = {
        "insertion": base.Number(
            "insertion ↑", "area under the probability while the hottest pixels are added", "high"
        ),
        "insertion_cosine": base.Number("insertion, cosine ↑", "the same for the cosine alone", "high", False),
    }
    curves: ClassVar = {"insertion": AXIS, "insertion_cosine": AXIS}
    fill = "blur"
    shows = True
