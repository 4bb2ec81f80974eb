"""ImageNetV2's threshold-0.7 pictures (Recht et al. 2019) with the boxes of the WSOL evaluation (Choe et al. 2020).

The pictures were released under two sets of names: first 0/0.jpeg … 0/9.jpeg, later 0/a31041fd….jpeg. WSOL metadata
exist for both. Their mapping.txt relates the names, so that either metadata can be used with either pictures. Boxes are
edges in original pixels, unchanged: they reach width − 1 and height − 1.
"""

import re
from dataclasses import replace
from pathlib import Path

from cliploc.errors import UsageError
from cliploc.evaluate.data._base import HELP, Annotations, Problems, Split, csv_rows, needed_folder, reader
from cliploc.evaluate.data.wsol import imagenet_class_names, metadata_folder, read_metadata

PICTURES = ("val2", "ILSVRC/val2", "imagenetv2-threshold0.7", "imagenetv2-threshold0.7-format-val", ".")
METADATA = ("metadata/ILSVRC/val", "metadata/val", "metadata")
MAPPING = "mapping.txt"


@reader(
    "imagenetv2",
    title="ImageNetV2 with WSOL boxes",
    about="10,000 new pictures of ILSVRC's 1,000 classes: to choose thresholds on",
    source="pictures: huggingface.co/datasets/vaishaal/ImageNetV2 (imagenetv2-threshold0.7.tar.gz); boxes: "
    "github.com/clovaai/wsolevaluation (metadata/ILSVRC/val)",
    splits=(Split("threshold0.7", "tune", "the pictures that at least 70 % of people would choose; the boxed ones"),),
    layout="""
val2/0/0.jpeg or val2/0/a31041fd….jpeg   the pictures of either release; class
                                         folders 0 … 999 or WordNet ids
                                         (or imagenetv2-threshold0.7/,
                                         imagenetv2-threshold0.7-format-val/)
metadata/ILSVRC/val/*.txt                the WSOL evaluation's metadata; with
                                         mapping.txt, of either naming
""",
)
def read(root: Path, split: str, problems: Problems) -> Annotations:  # noqa: ARG001 - there is but one
    """Reads the set. Sample ids are the annotations', val2/0/….jpeg."""
    classes = imagenet_class_names()
    pictures = _pictures(root)
    metadata = metadata_folder(root, METADATA) or needed_folder(root, METADATA[:1], "metadata")
    beside = (metadata / MAPPING, root / MAPPING)
    rows = next((csv_rows(place, 2) for place in beside if place.is_file()), [])
    # Each picture's name → its name in the other release, in both directions.
    other = {a: b for row in rows for a, b in (row, reversed(row))}
    candidates = []
    for one in read_metadata(metadata, problems.append)[1]:
        name, label = one.id.removeprefix("val2/"), one.label
        wnid = classes[label].wnid if 0 <= label < len(classes) else ""
        spellings = (name, other.get(f"{label}/{Path(name).name}", name))
        files = dict.fromkeys(Path(spelling).name for spelling in spellings)
        places = [pictures / place / file for file in files for place in (str(label), wnid) if place]
        path = next((place for place in places if place.is_file()), places[0])
        hint = "" if other else f"it may be there under its other name: put {MAPPING} beside the boxes"
        candidates.append(replace(one, id=f"val2/{name}", path=path, hint=hint))
    return Annotations(classes, candidates)


def _pictures(root: Path) -> Path:
    for place in PICTURES:  # a part of the dataset may have any of the classes
        if (root / place).is_dir() and any(re.fullmatch(r"\d{1,3}|n\d{8}", p.name) for p in (root / place).iterdir()):
            return root / place
    raise UsageError(f"expected class folders 0 … 999 at {root}/{', or '.join(PICTURES[:-1])}; found none: {HELP}")
