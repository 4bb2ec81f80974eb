"""Export formats: boxes in files for other tools. Each format is one file that registers itself; see `Export`."""

from __future__ import annotations

from cliploc.report.exports._export import Export, Need, Pictures, chosen_exports, export, exports
from cliploc.report.exports._files import PICTURES, FileNames, flat_stem
from cliploc.report.exports._values import AnnotatedPicture, ExportSettings
