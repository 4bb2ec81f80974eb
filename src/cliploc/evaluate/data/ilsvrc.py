"""ILSVRC2012's validation set (Russakovsky et al. 2015), the test set of weakly supervised localisation.

xmin, ymin, xmax and ymax of the official XML are taken as edges, unchanged. The WSOL evaluation does the same: its
metadata have the same numbers (none beyond width − 1 and height − 1). Read as first and last pixel instead, a box would
be one pixel wider and higher. If XML and metadata are both found, the metadata are used, so that results agree exactly
with the WSOL evaluation's.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cliploc.evaluate.data._base import Annotations, Candidate, Problems, Split, needed_folder, reader
from cliploc.evaluate.data.voc import read_pictures
from cliploc.evaluate.data.wsol import imagenet_class_names, metadata_folder, read_metadata
from cliploc.images.reading import SUFFIXES

PICTURES = ("val", "ILSVRC/val", "ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "ILSVRC2012_img_val")
ANNOTATIONS = ("Annotations/CLS-LOC/val", "ILSVRC/Annotations/CLS-LOC/val", "ILSVRC2012_bbox_val_v3/val")
METADATA = ("metadata/ILSVRC/test", "metadata/test", "metadata")


@reader(
    "ilsvrc",
    title="ILSVRC2012 validation set",
    about="50,000 pictures of 1,000 classes, boxes of every instance of the class",
    source="image-net.org (register; ILSVRC2012_img_val.tar, ILSVRC2012_bbox_val_v3.tgz) or Kaggle's "
    "imagenet-object-localization-challenge; WSOL metadata: github.com/clovaai/wsolevaluation",
    splits=(Split("val", "report", "all 50,000 pictures"),),
    layout="""
val/ILSVRC2012_val_00000001.JPEG            the pictures, flat …
val/n01751748/ILSVRC2012_val_00000001.JPEG  … or in a folder per class
                                            (or ILSVRC/Data/CLS-LOC/val)
and either
Annotations/CLS-LOC/val/*.xml               the official boxes
                                            (or ILSVRC2012_bbox_val_v3/val)
or
metadata/ILSVRC/test/*.txt                  the WSOL evaluation's metadata,
                                            which are used if both are there
""",
)
def read(root: Path, split: str, problems: Problems) -> Annotations:  # noqa: ARG001 - there is but one
    """Reads the set. Sample ids are the WSOL metadata's, val/ILSVRC2012_val_00000001.JPEG, for any folders."""
    pictures = needed_folder(root, PICTURES, "pictures")
    classes = imagenet_class_names()
    places: dict[str, str] = {}  # file name → the class folder that it is in; "" for none
    for entry in sorted(pictures.iterdir()):
        if re.fullmatch(r"n\d{8}", entry.name) and entry.is_dir():
            places.update({file.name: entry.name for file in entry.iterdir()})
        elif entry.suffix.lower() in SUFFIXES:
            places[entry.name] = ""
    metadata = metadata_folder(root, METADATA)
    if metadata is not None:
        listed = read_metadata(metadata, problems.append)[1]
    else:
        folder = needed_folder(root, (*ANNOTATIONS, METADATA[0]), "annotations")
        listed = _of_xml(folder, places, {class_name.wnid: i for i, class_name in enumerate(classes)}, problems)
    candidates = []
    for one in listed:
        name, label = one.path.name, one.label
        place = places.get(name, "")
        wnid = classes[label].wnid if 0 <= label < len(classes) else ""
        if place and wnid and place != wnid:
            problems.add("label mismatch", f"val/{name}", f"annotated as {wnid}, but in the folder {place}: left out")
        else:
            candidates.append(replace(one, id=f"val/{name}", path=pictures / place / name))
    return Annotations(classes, candidates)


def _of_xml(folder: Path, places: Mapping[str, str], labels: Mapping[str, int], problems: Problems) -> list[Candidate]:
    files = {f"val/{file.stem}.JPEG": file for file in sorted(folder.glob("*.xml"))}
    stems = {Path(name).stem for name in places} - {file.stem for file in files.values()}
    for stem in sorted(stems):
        problems.add("unannotated picture", stem, f"a picture without {folder / stem}.xml: left out")
    found = []
    for name, picture in read_pictures(files, problems).items():
        wnids = sorted({thing.names[0] for thing in picture.objects})
        if not wnids:
            problems.add("empty annotation", name, f"no object in {files[name]}: left out")
        elif len(wnids) > 1 or wnids[0] not in labels:
            reason = f"expected objects of one of ILSVRC's classes, got {wnids}: left out"
            problems.add("label mismatch", name, reason)
        else:
            edges = [thing.edges for thing in picture.objects if thing.edges is not None]
            found.append(Candidate(name, Path(name), labels[wnids[0]], edges, picture.size_wh))
    return found
