"""A CSV table with a line for each box."""

import csv
import io
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from cliploc import formats
from cliploc.errors import UsageError
from cliploc.formats import ExportSettings, LabelledBox, LabelSet, PictureLabels, Pictures, number
from cliploc.support.documents import finite, read_text
from cliploc.support.files import write_whole

EDGES = ("x0", "y0", "x1", "y1")
HEAD = ("path", "label", "score", "x0", "y0", "x1", "y1", "width", "height", "certainty")


def read(path: Path) -> LabelSet:
    """A table with at least the columns path, label and edges; a line without edges is a picture without boxes."""
    table = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    if missing := [column for column in ("path", "label", *EDGES) if column not in (table.fieldnames or ())]:
        raise UsageError(f"expected {path} to begin with a line of columns, got none called {missing[0]}: write it")
    pictures: dict[str, list[LabelledBox]] = {}
    sizes: dict[str, formats.Size | None] = {}
    for place, row in enumerate(table, start=2):
        try:
            name, size = (row["path"] or "").strip(), (row.get("width"), row.get("height"))
            of_picture = pictures.setdefault(name, [])
            sizes[name] = (int(size[0]), int(size[1])) if size[0] and size[1] else None
            if any(edges := [(row[edge] or "").strip() for edge in EDGES]):
                x0, y0, x1, y1 = map(finite, edges)
                of_picture.append(LabelledBox(str(place), (row["label"] or "").strip(), (x0, y0, x1, y1)))
        except ValueError:
            raise UsageError(
                f"{path}, row {place}: expected four numbers, got {','.join(edges)}: correct the line"
            ) from None

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

        write_whole(folder / self.files[0], fill)
