"""Export formats: boxes in files for other tools. Each format is one file that registers itself; see `Export`."""

from __future__ import annotations

from cliploc.report.exports._export import Export, Need, Pictures, chosen_exports, export, exports
from cliploc.report.exports._picture_files import PICTURES
from cliploc.report.exports._values import AnnotatedPicture, ExportSettings, FileNames, flat_stem

__all__ = [
    "PICTURES",
    "AnnotatedPicture",
    "Export",
    "ExportSettings",
    "FileNames",
    "Need",
    "Pictures",
    "chosen_exports",
    "export",
    "exports",
    "flat_stem",
]
