"""A CSV table with a line for each box."""

import csv
import io
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from cliploc import formats
from cliploc.formats import ExportSettings, LabelledBox, LabelSet, PictureLabels, Pictures, number
from cliploc.support.documents import read_text
from cliploc.support.files import write_atomic

EDGES = ("x0", "y0", "x1", "y1")
HEAD = ("path", "label", "score", "x0", "y0", "x1", "y1", "width", "height", "certainty")


def read(path: Path) -> LabelSet:
    """A table with at least the columns path, label and edges; a line without edges is a picture without boxes."""
    table = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    if missing := [column for column in ("path", "label", *EDGES) if column not in (table.fieldnames or ())]:
        raise ValueError(f"expected it to begin with the line path,label,x0,y0,x1,y1, found no {missing[0]}: write it")
    pictures: dict[str, list[LabelledBox]] = {}
    sizes: dict[str, formats.Size | None] = {}
    for place, row in enumerate(table, start=2):
        name, label, *edges = ((row[key] or "").strip() for key in ("path", "label", *EDGES))
        if not name or (any(edges) and not label):
            raise ValueError(f"row {place}: expected a path and a label, got {name!r} and {label!r}: fill it in")
        of_picture = pictures.setdefault(name, [])
        try:
            sizes[name] = (int(row["width"]), int(row["height"])) if row.get("width") and row.get("height") else None
            if any(edges):
                x0, y0, x1, y1 = map(float, edges)
                of_picture.append(LabelledBox(str(place), label, (x0, y0, x1, y1)))
        except ValueError:
            cells = ",".join(edges)
            raise ValueError(f"row {place}: expected four numbers, got {cells}: correct the line") from None

    def boxes(name: str, *_: object) -> Iterable[LabelledBox]:
        return pictures[name]

    return LabelSet("CSV", tuple(PictureLabels((name,), partial(boxes, name), sizes[name]) for name in pictures))


@formats.export
class BoxTable(formats.Export):
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
                    for (box, score, label), certain in zip(formats.rows(picture), known, strict=True):
                        edges = [f"{value:.2f}" for value in box]
                        name = settings.names[label]
                        writer.writerow([picture.name, name, number(score), *edges, *picture.size_wh, certain])
                    if not len(picture.xyxy):
                        writer.writerow([picture.name, "", "", "", "", "", "", *picture.size_wh, ""])

        write_atomic(folder / self.files[0], fill)
