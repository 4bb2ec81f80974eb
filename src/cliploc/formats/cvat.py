"""CVAT's XML format for images, version 1.1: one file."""

from pathlib import Path
from xml.sax.saxutils import escape

from cliploc.formats import (
    Export,
    ExportSettings,
    Pictures,
    attributes,
    export,
    rows,
)
from cliploc.images import rle
from cliploc.support.files import write_atomic


@export
class Cvat(Export):
    """CVAT's XML format for images."""

    name = "cvat"
    about = "CVAT for images 1.1, one XML file; corners in pixels with fractions"
    files = ("cvat.xml",)

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `cvat.xml`; boxes are corners in pixels, with fractions. A mask replaces its box."""

        def fill(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                file.write(
                    '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task>\n'
                )
                labels = "".join(f"<label><name>{escape(name)}</name></label>\n" for name in settings.names)
                file.write(f"<labels>\n{labels}</labels>\n</task></meta>\n")
                for picture in pictures():
                    width, height = picture.size_wh
                    head = attributes(id=picture.number - 1, name=picture.name, width=width, height=height)
                    file.write(f"<image {head}>\n")
                    for i, ((x0, y0, x1, y1), _, label) in enumerate(rows(picture)):
                        edges = {"xtl": x0, "ytl": y0, "xbr": x1, "ybr": y1}
                        corners = attributes(**{key: f"{value:.2f}" for key, value in edges.items()})
                        label_and_source = attributes(label=settings.names[label], source="auto", occluded=0)
                        shape = _mask(picture.masks[i]) if settings.masks else ""
                        tag = f"mask {label_and_source} {shape}" if shape else f"box {label_and_source} {corners}"
                        file.write(f'<{tag} z_order="0"></{tag.partition(" ")[0]}>\n')
                    file.write("</image>\n")
                file.write("</annotations>\n")

        write_atomic(folder / self.files[0], fill)


def _mask(code: rle.Rle) -> str:
    """A mask's rectangle and, row by row inside, its run lengths, beginning with those of 0; "" of an empty mask."""
    part, left, top = rle.part_of(code)
    if not part.size:
        return ""
    counts = ", ".join(map(str, rle.runs(part.ravel()).tolist()))
    return attributes(rle=counts, left=left, top=top, width=part.shape[1], height=part.shape[0])
