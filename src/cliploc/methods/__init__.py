"""Saliency methods: one file each, mathematics only. `find("cam")` gives one, `find("cam+layer_cam")` joins two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cliploc.support.imports import on_first_use

if TYPE_CHECKING:
    from cliploc.methods._infra.attention import mean_attention, patches_of
    from cliploc.methods._infra.ensemble import EnsembleRule, find, raw_maps
    from cliploc.methods._infra.maps import as_tensor, min_max
    from cliploc.methods._infra.method import Context, Family, Method, TrainedHead
    from cliploc.methods._infra.method_registry import (
        baselines,
        fitting,
        methods,
        refuse_unknown,
        resolve_options,
        saliency,
        unfit_reason,
    )

__getattr__ = on_first_use(
    __name__,
    {
        "cliploc.methods._infra.attention": ["mean_attention", "patches_of"],
        "cliploc.methods._infra.ensemble": ["EnsembleRule", "find", "raw_maps"],
        "cliploc.methods._infra.maps": ["as_tensor", "min_max"],
        "cliploc.methods._infra.method": ["Context", "Family", "Method", "TrainedHead"],
        "cliploc.methods._infra.method_registry": [
            "baselines", "fitting", "methods", "refuse_unknown", "resolve_options", "saliency", "unfit_reason",
        ],
    },
)  # fmt: skip
