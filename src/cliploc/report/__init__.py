"""Writes results as pictures, JSON documents and HTML pages; it never loads a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cliploc.support.imports import on_first_use

if TYPE_CHECKING:
    from cliploc.report.benchmark_page import write_report
    from cliploc.report.comparison import ModelResults, draw_comparison
    from cliploc.report.document import classified_record, compared_record, to_document
    from cliploc.report.overlay import draw_overlay, panels
    from cliploc.report.page import PageItem, write_page

__getattr__ = on_first_use(
    __name__,
    {
        "cliploc.report.benchmark_page": ["write_report"],
        "cliploc.report.comparison": ["ModelResults", "draw_comparison"],
        "cliploc.report.document": ["classified_record", "compared_record", "to_document"],
        "cliploc.report.overlay": ["draw_overlay", "panels"],
        "cliploc.report.page": ["PageItem", "write_page"],
    },
)
