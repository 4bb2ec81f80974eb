"""A CSV table with a line for each box."""

import csv
import math
from pathlib import Path

from cliploc.formats import (
    Export,
    ExportSettings,
    Pictures,
    export,
    number,
    rows,
)
from cliploc.support.files import write_atomic

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
                for picture in pictures():
                    certainty = [math.nan] * len(picture.xyxy) if picture.certainty is None else picture.certainty
                    known = ["" if math.isnan(value) else number(value) for value in certainty]
                    for (box, score, label), certain in zip(rows(picture), known, strict=True):
                        edges = [f"{value:.2f}" for value in box]
                        name = settings.names[label]
                        writer.writerow([picture.name, name, number(score), *edges, *picture.size_wh, certain])
                    if not len(picture.xyxy):
                        writer.writerow([picture.name, "", "", "", "", "", "", *picture.size_wh, ""])

        write_atomic(folder / self.files[0], fill)
