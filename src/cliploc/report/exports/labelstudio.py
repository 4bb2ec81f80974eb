"""Label Studio's tasks with predictions, for correction there, and the matching label config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cliploc._files import write_whole
from cliploc.report.colours import as_hex, name_colour
from cliploc.report.exports._export import Export, Pictures, export
from cliploc.report.exports._values import AnnotatedPicture, ExportSettings, attributes, json_list, number, rows

FROM, TO = "label", "image"


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
        """Writes `labelstudio.json` and `labelstudio_config.xml`.

        Boxes are in percent of the upright picture; each has a score and a unique id.
        """

        def fill(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                json_list(file, (_task(one, settings) for one in pictures()))

        def config(path: Path) -> None:
            labels = "".join(
                f"    <Label {attributes(value=name, background=as_hex(name_colour(i)))}/>\n"
                for i, name in enumerate(settings.names)
            )
            view = f'  <Image name="{TO}" value="$image"/>\n  <RectangleLabels name="{FROM}" toName="{TO}">\n{labels}'
            path.write_text(f"<View>\n{view}  </RectangleLabels>\n</View>\n", encoding="utf-8")

        tasks, labels_config = self.files
        write_whole(folder / labels_config, config)
        write_whole(folder / tasks, fill)


def _task(picture: AnnotatedPicture, settings: ExportSettings) -> dict[str, Any]:
    result = list(_results(picture, settings))
    prediction: dict[str, Any] = {"model_version": settings.model, "result": result}
    if result:
        prediction["score"] = number(min(picture.score))  # tasks can be sorted by the least certain box
    address = settings.image_url + quote(picture.name)
    return {"data": {"image": address, "path": picture.name}, "predictions": [prediction]}


def _results(picture: AnnotatedPicture, settings: ExportSettings) -> Iterator[dict[str, Any]]:
    width, height = picture.size_wh
    for box_id, ((x0, y0, x1, y1), score, label) in zip(picture.box_ids, rows(picture), strict=True):
        yield {
            "id": f"p{picture.number}b{box_id}",
            "type": "rectanglelabels",
            "from_name": FROM,
            "to_name": TO,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": number(score),
            "value": {
                "x": number(100 * x0 / width),
                "y": number(100 * y0 / height),
                "width": number(100 * (x1 - x0) / width),
                "height": number(100 * (y1 - y0) / height),
                "rotation": 0,
                "rectanglelabels": [settings.names[label]],
            },
        }
