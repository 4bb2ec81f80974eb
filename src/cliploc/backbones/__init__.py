"""Dual encoders: the only code that knows a model's insides. `create("mini")` makes one."""

from __future__ import annotations

from cliploc.backbones._catalogue import ModelEntry, create, models

__all__ = ["ModelEntry", "create", "models"]
