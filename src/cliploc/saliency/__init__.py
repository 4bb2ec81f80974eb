"""Saliency methods: one file each, mathematics only. `find("cam")` is one, `find("cam+layer_cam")` joins two."""

from __future__ import annotations

from cliploc.saliency._infra.attention import mean_attention, patches_of
from cliploc.saliency._infra.ensemble import EnsembleRule, find, min_max, raw_maps, resolve_options
from cliploc.saliency._infra.fit import fitting, unfit_reason
from cliploc.saliency._infra.registration import methods, saliency

__all__ = [
    "EnsembleRule",
    "find",
    "fitting",
    "mean_attention",
    "methods",
    "min_max",
    "patches_of",
    "raw_maps",
    "resolve_options",
    "saliency",
    "unfit_reason",
]
