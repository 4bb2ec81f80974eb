"""A CSV table with a line for each box."""

import csv
import math
from pathlib import Path

from cliploc._files import write_whole
from cliploc.report.exports import Export, ExportSettings, Pictures, export, number, rows

HEAD = ("path", "label", "score", "x0", "y0", "x1", "y1", "width", "height", "certainty")


@export
class BoxTable(Export):
    """A CSV table of boxes."""

    name = "csv"
    about = "`path,label,score,x0,y0,x1,y1,width,height,certainty`; edges in pixels, right and bottom exclusive"
    files = ("boxes.csv",)

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `boxes.csv`; a picture without boxes has a line with its path and size only."""

        def fill(path: Path) -> None:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(HEAD)
                for one in pictures():
                    certainty = [math.nan] * len(one.xyxy) if one.certainty is None else one.certainty
                    known = ["" if math.isnan(value) else number(value) for value in certainty]
                    for (box, score, label), certain in zip(rows(one), known, strict=True):
                        edges = [f"{value:.2f}" for value in box]
                        name = settings.names[label]
                        writer.writerow([one.name, name, number(score), *edges, *one.size_wh, certain])
                    if not len(one.xyxy):
                        writer.writerow([one.name, "", "", "", "", "", "", *one.size_wh, ""])

        write_whole(folder / self.files[0], fill)
