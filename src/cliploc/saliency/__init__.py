"""Saliency methods: one file each, mathematics only. `methods.get("cam")` finds one."""

from __future__ import annotations

from cliploc.saliency._infra.registration import methods, saliency

__all__ = ["methods", "saliency"]
