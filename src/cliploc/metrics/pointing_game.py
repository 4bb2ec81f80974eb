"""The pointing game (Zhang et al. 2018): is the hottest pixel on the object?"""

from typing import ClassVar

import numpy as np

from cliploc.metrics._infra.curve import checked_map
from cliploc.metrics._infra.metric import JudgedMap, MeanMetric, Number, metric

TOLERANCE = 15  # pixels


@metric
class PointingGame(MeanMetric):
    """The hottest pixel is on a true box, or at most 15 pixels beside it.

    Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop". Of equally hot pixels the first counts. A
    constant map is a miss.

    Example:
        >>> heat = np.zeros((64, 64))
        >>> heat[10, 20] = 1
        >>> PointingGame().value_of(JudgedMap("a", heat, np.array([[30, 5, 40, 15]]), (64, 64)))
        1.0
    """

    name = "pointing_game"
    position = 50
    column = "pointing_hit"
    column_type = "bool"
    numbers: ClassVar = {
        "pointing_game": Number("Pointing game", "the hottest pixel is on the object or at most 15 pixels beside it")
    }

    def value_of(self, judged: JudgedMap) -> float:
        heat, boxes = checked_map(judged.heat, "exact"), judged.boxes
        y, x = np.unravel_index(int(heat.argmax()), heat.shape)
        last = np.maximum(np.ceil(boxes[:, 2:]) - 1, boxes[:, :2])  # the last pixel that a box touches
        outside = np.maximum(np.maximum(boxes[:, :2] - (x, y), (x, y) - last), 0)  # [m, 2]
        near = bool((np.hypot(*outside.T) <= TOLERANCE).any())
        return float(near and heat.min() < heat.max())
