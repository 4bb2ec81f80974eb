"""Saliency methods: one file each, mathematics only. `find("cam")` gives one, `find("cam+layer_cam")` joins two."""

from typing import TYPE_CHECKING

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
    fitting,
    methods,
    patch_cosines,
    refuse_unknown,
    resolve_options,
    saliency,
    unfit_reason,
)  # fmt: skip
from cliploc.support.imports import on_first_use
from cliploc.towers.tower import AttentionRule, DenseReading, Needs

if TYPE_CHECKING:
    from cliploc.methods._infra.attention import mean_attention, patches_of
    from cliploc.methods._infra.ensemble import EnsembleRule, find, raw_maps
    from cliploc.methods._infra.maps import as_tensor, min_max

__getattr__ = on_first_use(  # with torch
    __name__,
    {
        "cliploc.methods._infra.attention": ["mean_attention", "patches_of"],
        "cliploc.methods._infra.ensemble": ["EnsembleRule", "find", "raw_maps"],
        "cliploc.methods._infra.maps": ["as_tensor", "min_max"],
    },
)
