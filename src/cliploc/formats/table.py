"""A CSV table with a line for each box."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from cliploc import formats
from cliploc.formats import Box, ExportSettings, LabelledBox, LabelSet, PictureLabels, Pictures, number
from cliploc.support.files import read_text, write_atomic

EDGES = ("x0", "y0", "x1", "y1")
HEAD = ("path", "label", "score", "x0", "y0", "x1", "y1", "width", "height", "certainty", "state")


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

    of_pictures = tuple(
        PictureLabels((name,), lambda *_, boxes=boxes: boxes, sizes[name]) for name, boxes in pictures.items()
    )
    return LabelSet("CSV", of_pictures, rewrite=rewrite)


def rewrite(path: Path, edits: formats.Edits) -> bytes:
    """The table after edits: rows of changed boxes are other ones, new ones follow those of their picture."""
    lines = [*io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")]
    reader = csv.reader(lines, skipinitialspace=True)
    head = next(reader)
    start = reader.line_num
    texts, rows, of_picture = ["".join(lines[:start])], [head], dict[str, list[int]]()
    ending = texts[0][len(texts[0].rstrip("\r\n")) :] or "\n"
    for row in reader:
        if row:
            of_picture.setdefault(row[head.index("path")].strip(), []).append(len(rows))
        texts.append("".join(lines[start : reader.line_num]))
        rows.append(row)
        start = reader.line_num

    def text_of(row: Sequence[str], label: str | None, xyxy: Box | None) -> str:
        cells = [*row, *[""] * (len(head) - len(row))]
        if label is not None:
            cells[head.index("label")] = label
        if xyxy is not None:
            for column, value in zip(EDGES, xyxy, strict=True):
                cells[head.index(column)] = f"{value:.2f}"
        written = io.StringIO(newline="")
        csv.writer(written, lineterminator=ending).writerow(cells)
        return written.getvalue()

    pictures = [*of_picture.values()]
    for picture, edits_of_it in edits.items():
        own, last = pictures[picture], pictures[picture][-1]
        boxes = [i for i in own if any(rows[i][head.index(column)].strip() for column in EDGES)]
        of_picture_alone = ("path", "width", "height")
        bare = [value if name in of_picture_alone else "" for name, value in zip(head, rows[last], strict=False)]
        for place, i in enumerate(boxes):
            edit = formats.edit_of(edits, picture, place)
            if edit != formats.Edit():
                texts[i] = "" if edit is None else text_of(rows[i], *edit)
        if texts[last] and not texts[last].endswith(("\r", "\n")):
            texts[last] += ending
        added = "".join(text_of(bare, *box) for box in edits_of_it.added)
        if not added and boxes and not any(texts[i] for i in own):
            added = text_of(bare, None, None)  # the picture stays, without boxes
        elif added and not boxes:
            texts[last] = ""
        texts[last] += added
    return "".join(texts).encode()


@formats.export
class BoxTable(formats.Export):
    """A CSV table of boxes."""

    name = "csv"
    about = "`path,label,score,x0,y0,x1,y1,width,height,certainty,state`; edges in pixels, right and bottom exclusive"
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
                        of_box = [settings.names[label], number(score), *(f"{value:.2f}" for value in box)]
                        writer.writerow([picture.name, *of_box, *picture.size_wh, certain, picture.state])
                    if not len(picture.xyxy):
                        writer.writerow([picture.name, "", "", "", "", "", "", *picture.size_wh, "", picture.state])

        write_atomic(folder / self.files[0], fill)
