"""A table with commas, a line for each box."""

from __future__ import annotations

import csv
from pathlib import Path

from cliploc._files import write_whole
from cliploc.report.exports._export import Export, Pictures, export
from cliploc.report.exports._values import ExportSettings, number, rows

HEAD = ("path", "label", "score", "x0", "y0", "x1", "y1", "width", "height")


@export
class Table(Export):
    """A table with commas."""

    name = "csv"
    about = "`path,label,score,x0,y0,x1,y1,width,height`; edges in pixels, right and bottom exclusive"
    files = ("boxes.csv",)

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `boxes.csv`; a picture without boxes has a line with its path and size only."""

        def fill(path: Path) -> None:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(HEAD)
                for one in pictures():
                    for box, score, label in rows(one):
                        edges = [f"{value:.2f}" for value in box]
                        writer.writerow([one.name, settings.names[label], number(score), *edges, *one.size_wh])
                    if not len(one.xyxy):
                        writer.writerow([one.name, "", "", "", "", "", "", *one.size_wh])

        write_whole(folder / self.files[0], fill)
