"""Boxes in the files that other tools read. Each format is a file of its own and registers itself; see `Export`."""

from __future__ import annotations

from cliploc.report.exports._export import Export, Need, Pictures, chosen_exports, export, exports
from cliploc.report.exports._values import AnnotatedPicture, ExportSettings, FileNames

__all__ = [
    "AnnotatedPicture",
    "Export",
    "ExportSettings",
    "FileNames",
    "Need",
    "Pictures",
    "chosen_exports",
    "export",
    "exports",
]
