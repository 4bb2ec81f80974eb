"""The temperature that turns cosines into logits."""

from __future__ import annotations

from cliploc.errors import UsageError
from cliploc.schema import Context


def resolve_temperature(ctx: Context, temperature: float | None) -> float:
    """The temperature asked for, or the one that the model was trained with, 1 / logit scale.

    Raises:
        UsageError: when it is not a positive number.
    """
    if temperature is None:
        return 1 / ctx.backbone.logit_scale
    if not temperature > 0:
        raise UsageError(f"expected a temperature above 0, got {temperature}: leave it out for the model's own")
    return temperature
