"""Export formats: boxes in files for other tools. Each format is one file that registers itself; see `Export`."""

from cliploc.report.exports._export import (
    PICTURES,
    AnnotatedPicture,
    Export,
    ExportSettings,
    FileNames,
    Need,
    Pictures,
    chosen_exports,
    export,
    exports,
    flat_stem,
)
