"""The temperature that turns cosines into logits."""

from __future__ import annotations

from cliploc.errors import UsageError
from cliploc.method import Context

# Multiple of the model's own temperature, at which a softmax over masked pictures gives nearly all weight to a few
# channels. 4 is the smallest multiple at which the tuning pictures lose no box: docs/performance.md,
# tools/score_cam_study.py.
MASKED_TIMES_OWN = 4.0


def resolve_temperature(ctx: Context, temperature: float | None, times_own: float = 1.0) -> float:
    """The given temperature, or, for None, `times_own` times that of the training, 1 / logit scale."""
    if temperature is None:
        return times_own / ctx.backbone.logit_scale
    if not temperature > 0:
        raise UsageError(f"expected a temperature above 0, got {temperature}: leave it out for the default")
    return temperature
