"""Refinements of the maps of any saliency method, one file each. `refinements.get("caa")` gives one."""

from __future__ import annotations

from cliploc.refine._registration import (
    LONGEST,
    Refinement,
    find_refinements,
    refinements,
    resolve_refinements,
)
