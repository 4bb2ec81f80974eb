"""Label Studio's tasks with predictions, for correction there, and the matching label config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from cliploc.draw.colours import as_hex, name_colour
from cliploc.formats import (
    AnnotatedPicture,
    Export,
    ExportSettings,
    Pictures,
    attributes,
    export,
    json_list,
    number,
    rows,
)
from cliploc.images import rle
from cliploc.support.files import write_atomic

Kind = Literal["rectanglelabels", "brushlabels", "polygonlabels"]
FROM, TO = "label", "image"
RUN_BITS = (3, 4, 8, 16)  # for the length of a run of a brush


@export
class LabelStudio(Export):
    """Label Studio's tasks and label config."""

    name = "labelstudio"
    about = (
        "Label Studio's predictions: percent of the picture, score, model version. Paste the config into the project's "
        "labelling interface, import the JSON"
    )
    files = ("labelstudio.json", "labelstudio_config.xml")
    needs = frozenset({"image_url"})

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `labelstudio.json` (boxes in percent, masks as brushes) and `labelstudio_config.xml`."""

        def fill(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                json_list(file, (_task(picture, settings) for picture in pictures()))

        def config(path: Path) -> None:
            labels = "".join(
                f"    <Label {attributes(value=name, background=as_hex(name_colour(i)))}/>\n"
                for i, name in enumerate(settings.names)
            )
            tag = "BrushLabels" if settings.masks else "RectangleLabels"
            view = f'  <Image name="{TO}" value="$image"/>\n  <{tag} name="{FROM}" toName="{TO}">\n{labels}'
            path.write_text(f"<View>\n{view}  </{tag}>\n</View>\n", encoding="utf-8")

        tasks, labels_config = self.files
        write_atomic(folder / labels_config, config)
        write_atomic(folder / tasks, fill)


def _task(picture: AnnotatedPicture, settings: ExportSettings) -> dict[str, Any]:
    result = []
    for i, (box, score, label) in enumerate(rows(picture)):
        kind: Kind = "brushlabels" if settings.masks else "rectanglelabels"
        shape = rectangle_shape(box, picture.size_wh)
        if settings.masks:  # a brush is row by row: turned, and made without the whole picture in memory
            height, width = picture.masks[i]["size"]
            part, left, top = rle.part_of(picture.masks[i])
            shape = {"format": "rle", "rle": brush(rle.placed(part.T, top, left, (width, height)))}
        id_in_task = f"p{picture.number}b{picture.box_ids[i]}"
        result.append(region(id_in_task, kind, (FROM, TO), picture.size_wh, shape, settings.names[label], score))
    prediction: dict[str, Any] = {"model_version": settings.model, "result": result}
    if result:
        prediction["score"] = number(min(picture.score))  # tasks can be sorted by the least certain box
    address = settings.image_url + quote(picture.name)
    return {"data": {"image": address, "path": picture.name}, "predictions": [prediction]}


def region(
    id_in_task: str,
    kind: Kind,
    ends: tuple[str, str],
    size_wh: tuple[int, int],
    shape: Mapping[str, Any],
    label: str,
    score: float,
) -> dict[str, Any]:
    """One shape of a prediction; `ends` are the names of the tag that has the labels, and of the picture's."""
    width, height = size_wh
    return {
        "id": id_in_task,
        "type": kind,
        "from_name": ends[0],
        "to_name": ends[1],
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": number(score),
        "value": {**shape, kind: [label]},
    }


def rectangle_shape(xyxy: Sequence[float], size_wh: tuple[int, int]) -> dict[str, Any]:
    """A box in percent of the picture."""
    (x0, y0, x1, y1), (width, height) = xyxy, size_wh
    return {
        "x": number(100 * x0 / width),
        "y": number(100 * y0 / height),
        "width": number(100 * (x1 - x0) / width),
        "height": number(100 * (y1 - y0) / height),
        "rotation": 0,
    }


def brush_shape(mask: rle.BoolArray) -> dict[str, Any]:
    """A mask `[H, W]` as a brush."""
    return {"format": "rle", "rle": brush(rle.runs(mask.ravel()))}


def polygon_shape(points: npt.NDArray[np.floating[Any]], size_wh: tuple[int, int]) -> dict[str, Any]:
    """Corners `[k, 2]` in pixels, in percent of the picture."""
    percent = 100 * points.astype(float) / np.array(size_wh, float)
    return {"points": [[number(x), number(y)] for x, y in percent.tolist()], "closed": True}


def brush(runs: rle.Counts) -> list[int]:
    """A mask's runs as Label Studio's brush, packed as `@thi.ng/rle-pack` does: RGBA, 0 or 255, by rows."""
    bits = [f"{4 * runs.sum():032b}{7:05b}", *(f"{size - 1:04b}" for size in RUN_BITS)]
    for number_of_run, length in enumerate(runs.tolist()):
        left = 4 * length
        while left:
            run = min(left, 2 ** RUN_BITS[-1])
            kind = next(i for i, size in enumerate(RUN_BITS) if run <= 2**size)
            bits.append(f"1{kind:02b}{run - 1:0{RUN_BITS[kind]}b}{255 * (number_of_run % 2):08b}")
            left -= run
    packed: list[int] = np.packbits(np.frombuffer("".join(bits).encode(), np.uint8) - 48).tolist()
    return packed
