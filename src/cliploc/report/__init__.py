"""Writes results as pictures, JSON documents and HTML pages; it never loads a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cliploc.support.imports import on_first_use

if TYPE_CHECKING:
    from cliploc.document import classified_record, compared_record, to_document
    from cliploc.draw.comparison import ModelResults, draw_comparison
    from cliploc.draw.overlay import draw_overlay, panels
    from cliploc.draw.page import PageItem, write_page
    from cliploc.evaluate.tasks.boxes.page import write_report

__getattr__ = on_first_use(
    __name__,
    {
        "cliploc.evaluate.tasks.boxes.page": ["write_report"],
        "cliploc.draw.comparison": ["ModelResults", "draw_comparison"],
        "cliploc.document": ["classified_record", "compared_record", "to_document"],
        "cliploc.draw.overlay": ["draw_overlay", "panels"],
        "cliploc.draw.page": ["PageItem", "write_page"],
    },
)
