"""Dual encoders: the only code that knows a model's insides. `create("mini")` makes one."""

from __future__ import annotations

from cliploc.backbones._catalogue import ModelEntry, create, models
from cliploc.backbones._precision import precision_name, resolve_precision
from cliploc.backbones._tower import DualEncoder

__all__ = ["DualEncoder", "ModelEntry", "create", "models", "precision_name", "resolve_precision"]
