"""Refinements of the maps of any saliency method, one file each. `refinements.get("caa")` gives one."""

from cliploc.refine._registration import (
    LONGEST,
    Refinement,
    find_refinements,
    refinement,
    refinements,
    resolve_refinements,
)
