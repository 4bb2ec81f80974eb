"""OpenImages30k (Choe et al. 2020): pictures of one class each with instance masks and regions to ignore, for PxAP.

Masks and the ignore region are separate files; a sample has no boxes. Pixels in both a mask and the ignore region count
as mask, as in the WSOL evaluation.
"""

from pathlib import Path

from cliploc.errors import UsageError
from cliploc.evaluate.data import _base as base
from cliploc.values import ClassName

METADATA = ("metadata/OpenImages/{split}", "metadata/{split}")
NAMES = "class-descriptions-boxable.csv"


@base.reader(
    "openimages30k",
    title="OpenImages30k",
    about="7,500 pictures of 100 classes with masks of the instances and regions to ignore",
    source="pictures, masks and metadata: github.com/clovaai/wsolevaluation; names of classes: "
    f"storage.googleapis.com/openimages/v5/{NAMES}",
    splits=(
        base.Split("test", "report", "5,000 pictures"),
        base.Split("val", "tune", "2,500 pictures, to choose thresholds on"),
    ),
    layout=f"""
metadata/OpenImages/test/image_ids.txt     IMAGE: test/0bt_c3/0a51958fcd.jpg
metadata/OpenImages/test/class_labels.txt  IMAGE,LABEL
metadata/OpenImages/test/localization.txt  IMAGE,MASK,IGNORE: one instance
                                           per line, IGNORE on the first only
{NAMES}             /m/0bt_c3,Book: one class per line
OpenImages/test/0bt_c3/…                   pictures and masks (or test/…)
""",
)
def read(root: Path, split: str, problems: base.Problems) -> base.Annotations:
    """Reads a split. Sample ids are the metadata's, test/0bt_c3/….jpg."""
    metadata = base.needed_folder(root, [place.format(split=split) for place in METADATA], "metadata")
    top = root / "OpenImages" if (root / "OpenImages").is_dir() else root
    listed = dict.fromkeys(row[0] for row in base.csv_rows(metadata / "image_ids.txt", 1))
    labels = {image_id: int(numbers[0]) for image_id, numbers in base.numbers(metadata / "class_labels.txt", 1)}
    masks: dict[str, list[Path]] = {}
    ignored: dict[str, Path] = {}
    for image_id, mask, region in base.csv_rows(metadata / "localization.txt", 3):
        masks.setdefault(image_id, []).append(top / mask)
        if region:
            ignored.setdefault(image_id, top / region)
    mids: dict[int, str] = {}  # label → the folder of its pictures
    candidates = []
    for image_id in listed:
        if image_id not in labels:
            problems.add("metadata", image_id, "not in class_labels.txt: add its line")
            continue
        label, path, files = labels[image_id], top / image_id, tuple(masks.get(image_id, ()))
        mids[label] = path.parent.name
        candidates.append(base.Candidate(image_id, path, label, masks=files, ignore=ignored.get(image_id)))
    names = {row[0].removeprefix("/m/"): row[1] for row in base.csv_rows(root / NAMES, 2)}
    classes = []
    for label in range(max(mids, default=-1) + 1):
        if label not in mids:
            raise UsageError(f"expected the labels 0, 1, 2 … in class_labels.txt, found no {label}: complete the file")
        mid = mids[label]
        if mid not in names:
            raise UsageError(f"expected a name for /m/{mid} in {root / NAMES}, found none: download the full file")
        classes.append(ClassName(names[mid], (names[mid],), f"/m/{mid}"))
    return base.Annotations(tuple(classes), candidates)
