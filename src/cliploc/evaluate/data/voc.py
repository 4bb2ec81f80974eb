"""Pascal VOC (Everingham et al. 2010): a sample for each class in each picture.

VOC counts pixels from 1 and includes the last: xmin … xmax are the edges xmin − 1 … xmax. Objects marked difficult are
left out, and so is a class whose objects in a picture are all difficult; VOC's evaluation ignores them too. They are
listed as problems of the kind "difficult", which is by design.
"""

from collections.abc import Mapping
from pathlib import Path

from cliploc.errors import UsageError
from cliploc.evaluate.data import _base as base
from cliploc.formats import Box, voc
from cliploc.values import ClassName

PLACES = (".", "VOCdevkit/VOC2012", "VOCdevkit/VOC2007", "VOC2012", "VOC2007")
# Where labelling tools put the XML and the pictures that no list names; "": beside each other.
PLAIN_XML = ("Annotations", "annotations", "xml", ".")
PLAIN_PICTURES = ("JPEGImages", "images", ".")
# The names in the files, in the official order; and the usual ones where these are others.
NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
USUAL: dict[str, tuple[str, ...]] = {
    "aeroplane": ("aeroplane", "airplane"),
    "diningtable": ("dining table",),
    "motorbike": ("motorbike", "motorcycle"),
    "pottedplant": ("potted plant",),
    "sofa": ("sofa", "couch"),
    "tvmonitor": ("TV monitor", "television"),
}


@base.reader(
    "voc",
    title="Pascal VOC",
    about="20 classes, several per picture; or your own in VOC's XML",
    source="host.robots.ox.ac.uk/pascal/VOC (VOC2012 trainval; VOC2007 trainval and test)",
    splits=(
        base.Split("val", "report", "ImageSets/Main/val.txt"),
        base.Split("train", "tune", "ImageSets/Main/train.txt"),
        base.Split("trainval", "tune", "ImageSets/Main/trainval.txt"),
        base.Split("test", "report", "ImageSets/Main/test.txt, where it has annotations (VOC2007)"),
    ),
    layout="""
ImageSets/Main/val.txt        one picture name per line, such as 2008_000002
Annotations/2008_000002.xml   the size, and one object per box
JPEGImages/2008_000002.jpg    the pictures (also: .png and other formats)
classes.txt                   only for classes other than VOC's: one per line
                              (also below VOCdevkit/VOC2012 or VOC2007)

Or without lists, as labelling tools write it: the whole folder, whichever
split is asked for, with the classes of the files:
annotations/a.xml             (also: Annotations/, xml/, or the folder itself)
images/a.jpg                  (also: JPEGImages/, or the folder itself)
""",
)
def read(root: Path, split: str, problems: base.Problems) -> base.Annotations:
    """Reads a split. Sample ids are picture and class: 2008_000002/tvmonitor."""
    top = base.first_folder(root, [p for p in PLACES if (root / p / "Annotations").is_dir()])
    if listed := top is not None and (top / "ImageSets").is_dir():
        stems = [row[0].split()[0] for row in base.words(top / "ImageSets" / "Main" / f"{split}.txt", 1)]
        files = {stem: top / "Annotations" / f"{stem}.xml" for stem in stems}
        folders = [top / "JPEGImages"]
    else:  # as labelling tools write it
        places = (root / place / name for place in PLACES for name in PLAIN_XML)
        folder = next((path for path in places if path.is_dir() and any(path.glob("*.xml"))), None)
        if folder is None:
            raise UsageError(f"expected a folder Annotations below {root}, or XML in {root}, found none: {base.HELP}")
        top = folder.parent if folder.name in PLAIN_XML else folder
        files = {path.stem: path for path in sorted(folder.glob("*.xml"))}
        folders = [place for place in (*(top / name for name in PLAIN_PICTURES), folder) if place.is_dir()]
    pictures = read_pictures(files, problems)
    names: dict[str, tuple[str, ...]]
    if (top / "classes.txt").is_file():
        names = {row[0]: (row[0],) for row in base.words(top / "classes.txt", 1)}
    elif listed:
        names = {name: USUAL.get(name, (name,)) for name in NAMES}
    else:
        every = {thing.names[0] for picture in pictures.values() for thing in picture.objects}
        names = {name: (name,) for name in sorted(every)}
    labels = {name: label for label, name in enumerate(names)}
    candidates, difficult = [], set()
    for stem, picture in pictures.items():
        if not picture.objects:
            problems.add("empty annotation", stem, "no object: left out")
        path, boxes = base.picture_of(folders, stem), dict[str, list[Box]]()
        for thing in picture.objects:
            name = thing.names[0]
            if name not in labels:
                reason = f"an object is {name!r}, not one of the {len(labels)} classes: left out; see classes.txt"
                problems.add("label mismatch", stem, reason)
            elif thing.difficult:
                problems.add("difficult", f"{stem}/{name}", "an object marked difficult: its box is left out")
                difficult.add((path, labels[name]))
            else:
                boxes.setdefault(name, []).append(thing.xyxy)
        for name in sorted(boxes, key=labels.__getitem__):
            candidates.append(base.Candidate(f"{stem}/{name}", path, labels[name], boxes[name], picture.size_wh))
    classes = tuple(ClassName(synonyms[0], synonyms, name) for name, synonyms in names.items())
    return base.Annotations(classes, candidates, frozenset(difficult))


def read_pictures(files: Mapping[str, Path], problems: base.Problems) -> dict[str, voc.VocPicture]:
    """The XML files of VOC or ILSVRC that can be read, by their names in problems."""
    pictures = {}
    for name, path in files.items():
        try:
            picture = voc.read_picture(path)
            if any(thing.edges is None for thing in picture.objects):
                raise ValueError("an object without its bndbox")
            pictures[name] = picture
        except FileNotFoundError:
            problems.add("broken annotation", name, f"expected an annotation at {path}, found none: left out")
        except (ValueError, OSError) as error:
            reason = f"{path} is not an annotation that can be read ({error}): left out"
            problems.add("broken annotation", name, reason)
    return pictures
