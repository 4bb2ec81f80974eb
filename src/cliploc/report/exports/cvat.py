"""CVAT's XML format for images, version 1.1: one file."""

from __future__ import annotations

from pathlib import Path

from cliploc._files import write_whole
from cliploc.report.exports._export import Export, Pictures, export
from cliploc.report.exports._values import ExportSettings, attributes, element, rows


@export
class Cvat(Export):
    """CVAT's XML format for images."""

    name = "cvat"
    about = "CVAT for images 1.1, one XML file; corners in pixels with fractions"
    files = ("cvat.xml",)

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `cvat.xml`; boxes are corners in pixels, with fractions."""

        def fill(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                file.write(
                    '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task>\n'
                )
                labels = "".join(f"<label>{element('name', name).strip()}</label>\n" for name in settings.names)
                file.write(f"<labels>\n{labels}</labels>\n</task></meta>\n")
                for one in pictures():
                    width, height = one.size_wh
                    head = attributes(id=one.number - 1, name=one.name, width=width, height=height)
                    file.write(f"<image {head}>\n")
                    for (x0, y0, x1, y1), _, label in rows(one):
                        edges = {"xtl": x0, "ytl": y0, "xbr": x1, "ybr": y1}
                        corners = attributes(**{key: f"{value:.2f}" for key, value in edges.items()})
                        label_and_source = attributes(label=settings.names[label], source="auto", occluded=0)
                        file.write(f'<box {label_and_source} {corners} z_order="0"></box>\n')
                    file.write("</image>\n")
                file.write("</annotations>\n")

        write_whole(folder / self.files[0], fill)
