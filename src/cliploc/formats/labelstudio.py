"""Label Studio's tasks: those that people have annotated, and predictions with the matching label config."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from cliploc import formats
from cliploc.draw.colours import as_hex, name_colour
from cliploc.formats import LabelledBox, LabelSet, PictureLabels, attributes, number
from cliploc.images import rle
from cliploc.images.reading import SUFFIXES
from cliploc.support.files import parse_json, write_atomic

Kind = Literal["rectanglelabels", "polygonlabels"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FROM, TO = "label", "image"
CORNERS = 0.5  # pixels that a polygon may lie from a mask's outline, so that it has as few corners as people can drag
# What it stores besides shapes.
NO_SHAPES = ("choices", "datetime", "number", "rating", "relation", "taxonomy", "textarea")


# ---------------------------------------------------------------------------------------------------------------- read
def read(tasks: Sequence[Mapping[str, Any]]) -> LabelSet:
    """The annotated ones of parsed tasks, each with its latest annotation."""
    pictures = []
    for task in tasks:
        if (last := _latest(task)) is None:
            continue  # nobody has looked at it
        data = task["data"]
        paths = [data.get("path"), *(value for key, value in data.items() if key != "path")]
        names = tuple(name for path in paths if isinstance(path, str) for name in formats.spellings(path))
        # What else a task has, such as an id of "12", may be the name of another picture.
        names = tuple(name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES) or names
        pictures.append(PictureLabels(names or (f"task {task.get('id')}",), partial(_boxes, last["result"])))
    return LabelSet("Label Studio", tuple(pictures), rewrite=rewrite)


def _latest(task: Mapping[str, Any]) -> dict[str, Any] | None:
    """The latest annotation that was not skipped."""
    done = [annotation for annotation in task.get("annotations") or [] if not annotation.get("was_cancelled")]
    return max(enumerate(done), key=lambda pair: (str(pair[1].get("updated_at", "")), pair[0]))[1] if done else None


def rewrite(file: Path, edits: formats.Edits) -> bytes:
    """The tasks after edits of their latest annotations; a polygon or brush that was moved is a rectangle."""
    before = file.read_bytes()
    tasks = parse_json(before)
    done = [annotation for task in tasks if (annotation := _latest(task)) is not None]
    every = [one for annotation in done for one in annotation["result"] if one["type"] == KINDS[0]]
    ends = (every[0]["from_name"], every[0]["to_name"]) if every else (FROM, TO)  # names of tags in the project
    for picture, of_picture in edits.items():
        kept, place, size = [], 0, of_picture.size_wh
        for result in done[picture]["result"]:
            if result["type"] in NO_SHAPES:
                kept.append(result)
                continue
            edit = formats.edit_of(edits, picture, place)
            place += 1
            if edit is None:
                continue
            kind, value = result["type"], result["value"]
            if edit.name is not None:
                value[kind] = [edit.name]
            if edit.xyxy is not None and kind == KINDS[0]:
                value.update({**rectangle_shape(edit.xyxy, size), "rotation": value.get("rotation", 0)})
            elif edit.xyxy is not None:
                result |= {"type": KINDS[0], "from_name": ends[0], "to_name": ends[1]}
                result["value"] = {**rectangle_shape(edit.xyxy, size), KINDS[0]: value[kind]}
            kept.append(result)
        for number_of_box, (name, xyxy) in enumerate(of_picture.added, start=1):
            shape = rectangle_shape(xyxy, size)
            kept.append(region(f"new{number_of_box}", "rectanglelabels", ends, size, shape, name))
        done[picture]["result"] = kept
    return formats.json_again(tasks, before)


def _boxes(results: Sequence[Mapping[str, Any]], size_wh: formats.Size, masks: bool) -> Iterator[LabelledBox]:
    width, height = size_wh
    for place, result in enumerate(results, start=1):
        value, kind = result.get("value", {}), result["type"]
        if kind in NO_SHAPES:
            continue
        if kind not in KINDS:
            raise ValueError(f"a shape in it is {kind}, not a box")
        if len(value[kind]) != 1:
            raise ValueError(f"a shape in it has {len(value[kind])} labels, not one")
        (label,) = value[kind]
        annotated = (result.get("original_width", width), result.get("original_height", height))
        if annotated != size_wh:
            raise ValueError(f"it is {annotated[0]}×{annotated[1]} in the set, but was annotated at {width}×{height}")
        if kind == "rectanglelabels":
            shares = [value[key] / 100 for key in ("x", "y", "width", "height")]
            x0, y0, across, down = np.array(shares) * [width, height, width, height]
            x1, y1 = x0 + across, y0 + down
            mask, shape = None, "rotated rectangle" if value.get("rotation") else "box"
        else:
            points = np.array(value["points"], float) * [width / 100, height / 100]
            mask = partial(formats.polygon_runs, [points.ravel().tolist()], size_wh)
            (x0, y0, x1, y1), shape = rle.bounds(mask(), height), "polygon"
        yield LabelledBox(str(result.get("id", place)), label, (x0, y0, x1, y1), mask if masks else None, shape)


# --------------------------------------------------------------------------------------------------------------- write
@formats.export
class LabelStudio(formats.Export):
    """Label Studio's tasks and label config."""

    name = "labelstudio"
    about = "Label Studio's predictions: paste the config into the project's labelling interface, import the JSON"
    files = ("labelstudio.json", "labelstudio_config.xml")

    def write(self, pictures: formats.Pictures, settings: formats.ExportSettings, folder: Path) -> None:
        """Writes `labelstudio.json` (boxes in percent, masks as polygons) and `labelstudio_config.xml`."""

        def fill(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                formats.json_list(file, (_task(picture, settings) for picture in pictures()))

        def config(path: Path) -> None:
            labels = "".join(
                f"    <Label {attributes(value=name, background=as_hex(name_colour(i)))}/>\n"
                for i, name in enumerate(settings.names)
            )
            tag = "PolygonLabels" if settings.masks else "RectangleLabels"
            view = f'  <Image name="{TO}" value="$image"/>\n  <{tag} name="{FROM}" toName="{TO}">\n{labels}'
            path.write_text(f"<View>\n{view}  </{tag}>\n</View>\n", encoding="utf-8")

        tasks, labels_config = self.files
        write_atomic(folder / labels_config, config)
        write_atomic(folder / tasks, fill)


def _task(picture: formats.AnnotatedPicture, settings: formats.ExportSettings) -> dict[str, Any]:
    from cliploc.boxes.masks import merged  # its package needs torch

    result = []
    for i, (box, score, label) in enumerate(formats.rows(picture)):
        kind: Kind = "polygonlabels" if settings.masks else "rectanglelabels"
        shape = rectangle_shape(box, picture.size_wh)
        if settings.masks:
            part, left, top = rle.part_of(picture.masks[i])
            shape = polygon_shape(merged(part, "edges", CORNERS) + np.array([left, top]), picture.size_wh)
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
    score: float | None = None,
) -> dict[str, Any]:
    """One shape of a prediction; `ends` are the names of the tag that has the labels, and of the picture's."""
    of_tags = {"id": id_in_task, "type": kind, "from_name": ends[0], "to_name": ends[1]}
    of_picture = {"original_width": size_wh[0], "original_height": size_wh[1], "image_rotation": 0}
    scored = {} if score is None else {"score": number(score)}
    return {**of_tags, **of_picture, **scored, "value": {**shape, kind: [label]}}


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


def polygon_shape(points: npt.NDArray[np.floating[Any]], size_wh: tuple[int, int]) -> dict[str, Any]:
    """Corners `[k, 2]` in pixels, in percent of the picture."""
    percent = 100 * points.astype(float) / np.array(size_wh, float)
    return {"points": [[number(x), number(y)] for x, y in percent.tolist()], "closed": True}
