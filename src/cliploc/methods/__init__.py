"""Saliency methods: one file each, mathematics only. `find("cam")` gives one, `find("cam+layer_cam")` joins two."""

import importlib
from typing import TYPE_CHECKING, Any

from cliploc.methods._infra.method import (
    Blocks,
    Context,
    Count,
    Family,
    FromEnd,
    Method,
    NotNegative,
    Positive,
    Share,
    Stages,
    TrainedHead,
    baseline,
    baselines,
    check_method,
    fitting,
    methods,
    patch_cosines,
    resolve_options,
    saliency,
    unfit_reason,
)  # fmt: skip
from cliploc.towers.tower import AttentionRule, BlockEnd, DenseReading, Needs, block_at, join_heads, split_heads

if TYPE_CHECKING:
    from cliploc.methods._infra.attention import *  # noqa: F403
    from cliploc.methods._infra.ensemble import find, raw_maps
    from cliploc.methods._infra.gradients import *  # noqa: F403
    from cliploc.methods._infra.maps import as_tensor, min_max, on_finest
    from cliploc.methods._infra.masked import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """What needs torch, on first use; a submodule is none."""
    for part in () if name.startswith("_") else ("attention", "gradients", "maps", "masked", "ensemble"):
        module = importlib.import_module(f"{__name__}._infra.{part}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
