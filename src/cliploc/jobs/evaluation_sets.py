"""The folders that the documentation's figures were measured on, built from the public sets and compared with ours.

The package has no picture and no box of them, only each picture's name and two checksums: of the file that was
measured, and of its labels, size and boxes.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from PIL.Image import Resampling

from cliploc._documents import DocumentError, lines_of, read_bytes, read_json
from cliploc._files import write_folder_whole
from cliploc.datasets import Problems, readers
from cliploc.errors import UnknownNameError, UsageError
from cliploc.images import open_picture
from cliploc.prompts import imagenet_classes
from cliploc.reporter import SILENT, Reporter

CHECKED = 16  # hexadecimal digits of a checksum
WSOL_SIDE, WSOL_QUALITY = 227, 95  # of the pictures of ILSVRC's validation set, which are stretched
SHORT_SIDE, SHORT_QUALITY = 256, 88  # of ImageNet's training pictures, one for each class
SPLITS = ("val2017", "train2017")  # of COCO, in which the pictures are looked for
Truths = Mapping[str, str]  # picture → its labels, size and boxes in one line; none where a set has no boxes


@dataclass(frozen=True)
class EvaluationSet:
    """A folder that can be built."""

    name: str
    about: str
    dataset: str  # the reader that opens it; "" if it has no boxes
    folder: str  # its name in the documentation's commands
    source: str  # what `--from` must be
    build: Callable[[Path, Path, Sequence[str], Reporter], Truths] = field(repr=False)


@dataclass(frozen=True)
class Built:
    """What was written: how many pictures, and those that are not what the figures were measured on."""

    pictures: int
    other_files: tuple[str, ...]
    other_truth: tuple[str, ...]


def make_set(name: str, source: Path, out: Path, reporter: Reporter = SILENT) -> Built:
    """Builds a set as a new folder, as a whole or not at all."""
    if name not in SETS:
        raise UnknownNameError("evaluation set", name, SETS, "datasets make")
    chosen = SETS[name]
    if not source.is_dir():
        raise UsageError(f"expected a folder at {source}, found none: --from is {chosen.source}")
    if out.exists():
        raise UsageError(f"expected a new folder, found something at {out}: remove it or choose another --out")
    # Picture → the checksums of its file and of its truth, in the order of the set.
    sums = {row["picture"]: (row["file"], row["truth"]) for row in csv.DictReader(_own_lines(name))}
    truths: Truths = {}
    files: dict[str, str] = {}

    def write(folder: Path) -> None:
        nonlocal truths
        folder.mkdir(parents=True, exist_ok=True)
        reporter.start(len(sums), len(sums))
        truths = chosen.build(source, folder, list(sums), reporter)
        files.update({file.name: _checksum(read_bytes(file)) for file in folder.rglob("*") if file.name in sums})

    out.parent.mkdir(parents=True, exist_ok=True)
    write_folder_whole(out, write)
    return Built(
        len(sums),
        tuple(picture for picture, (file, _) in sums.items() if files[picture] != file),
        tuple(
            picture for picture, (_, truth) in sums.items() if truth and _checksum(truths[picture].encode()) != truth
        ),
    )


def _own_lines(name: str) -> list[str]:
    path = resources.files("cliploc.jobs") / "evaluation_pictures" / f"{name}.csv"
    return path.read_text(encoding="utf-8").splitlines()


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:CHECKED]


# ------------------------------------------------------------------------------------------------------- the builders
def _ilsvrc(source: Path, out: Path, wanted: Sequence[str], reporter: Reporter) -> Truths:
    """Pictures of ILSVRC's validation set in the WSOL layout, stretched; boxes end at width − 1 and height − 1."""
    annotations = readers.get("ilsvrc").read(source, "val", Problems())
    there = {candidate.path.name: candidate for candidate in annotations.candidates}
    _refuse_missing(wanted, (name for name in there if there[name].path.is_file()), source, "pictures with boxes")
    (out / "val").mkdir()
    lines: dict[str, list[str]] = {"image_ids": [], "class_labels": [], "image_sizes": [], "localization": []}
    truths = {}
    for name in wanted:
        candidate = there[name]
        with open_picture(candidate.path) as opened:
            width, height = opened.image.size
            stretched = opened.image.convert("RGB").resize((WSOL_SIDE, WSOL_SIDE), Resampling.LANCZOS)
        stretched.save(out / "val" / name, "JPEG", quality=WSOL_QUALITY)
        last = (width - 1, height - 1) * 2
        boxes = [tuple(f"{min(v, m):g}" for v, m in zip(box, last, strict=True)) for box in candidate.boxes]
        lines["image_ids"].append(f"val/{name}")
        lines["class_labels"].append(f"val/{name},{candidate.label}")
        lines["image_sizes"].append(f"val/{name},{width},{height}")
        lines["localization"] += [f"val/{name},{','.join(box)}" for box in boxes]
        ordered = sorted(boxes, key=lambda box: [float(value) for value in box])
        truths[name] = f"{candidate.label} {width} {height} {' '.join(value for box in ordered for value in box)}"
        reporter.images(1)
    (out / "metadata").mkdir()
    for stem, rows in lines.items():
        (out / "metadata" / f"{stem}.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    with (out / "synsets.csv").open("w", encoding="utf-8", newline="") as file:
        classes = [
            (i, class_name.wnid, ", ".join((class_name.name, *class_name.synonyms)))
            for i, class_name in enumerate(imagenet_classes())
        ]
        csv.writer(file, lineterminator="\n").writerows([("label", "wnid", "synset_words"), *classes])
    return truths


def _one_per_class(source: Path, out: Path, wanted: Sequence[str], reporter: Reporter) -> Truths:
    """A picture for each class, whose name begins with the WordNet id; larger ones are made smaller."""
    there = {f"{file.name.partition('_')[0]}.jpg": file for file in sorted(source.glob("n*_*.JPEG"))}
    _refuse_missing(wanted, there, source, "pictures such as n01440764_tench.JPEG")
    for name in wanted:
        with open_picture(there[name]) as opened:
            shorter = min(opened.image.size)
            width, height = (round(side * min(1, SHORT_SIDE / shorter)) for side in opened.image.size)
            smaller = opened.image.convert("RGB").resize((width, height), Resampling.LANCZOS)
        smaller.save(out / name, "JPEG", quality=SHORT_QUALITY)
        reporter.images(1)
    return {}


def _coco(source: Path, out: Path, wanted: Sequence[str], reporter: Reporter) -> Truths:
    """Pictures of both splits of COCO 2017 with their instances, in the layout of val2017."""
    names = set(wanted)
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for split in SPLITS:
        path = source / "annotations" / f"instances_{split}.json"
        try:
            document: dict[str, Any] = read_json(path, dict[str, Any])
        except OSError as error:
            raise UsageError(f"expected COCO's instances at {path} ({error.strerror}): --from is {COCO}") from None
        except DocumentError as error:
            raise UsageError(f"{path} is not JSON ({error}): download it again") from None
        if absent := {"images", "annotations", "categories"} - document.keys():
            raise UsageError(f"expected COCO's instances in {path}, which has no {min(absent)}: download it again")
        chosen = {image["id"]: image for image in document["images"] if image["file_name"] in names}
        images += chosen.values()
        instances += [instance for instance in document["annotations"] if instance["image_id"] in chosen]
    return _written(out, _pictures(source, wanted), images, instances, document["categories"], reporter)


def _coco128(source: Path, out: Path, wanted: Sequence[str], reporter: Reporter) -> Truths:
    """Pictures of the coco128-seg set, whose polygons are in YOLO's format, in the layout of val2017."""
    files = _pictures(source, wanted)
    # COCO's 80 categories, in the order of YOLO's labels.
    categories = [{"id": int(number), "name": name} for number, name in csv.reader(_own_lines("coco_categories"))]
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for name in wanted:
        with open_picture(files[name]) as opened:
            width, height = opened.image.size
        images.append({"id": int(Path(name).stem), "file_name": name, "width": width, "height": height})
        path = source / "labels/train2017" / f"{Path(name).stem}.txt"
        try:
            rows = [[float(cell) for cell in line.split()] for line in lines_of(path) if line.strip()]
            for label, *polygon in rows:
                xs, ys = ([round(v * side, 2) for v in polygon[i::2]] for i, side in ((0, width), (1, height)))
                box = [min(xs), min(ys), round(max(xs) - min(xs), 2), round(max(ys) - min(ys), 2)]
                instances.append(
                    {
                        "image_id": images[-1]["id"],
                        "category_id": categories[int(label)]["id"],
                        "segmentation": [[value for point in zip(xs, ys, strict=True) for value in point]],
                        "bbox": box,
                        "area": round(_area(xs, ys), 2),
                        "iscrowd": 0,
                    }
                )
        except (OSError, ValueError, IndexError) as error:
            raise UsageError(f"expected lines CLASS X Y X Y … in {path} ({error}): --from is {COCO128}") from None
    return _written(out, files, images, instances, categories, reporter)


def _written(
    out: Path,
    files: Mapping[str, Path],
    images: list[dict[str, Any]],
    instances: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    reporter: Reporter,
) -> Truths:
    """Copies the pictures, and writes the instances with ids from 1 on."""
    images = sorted(images, key=lambda image: int(image["id"]))
    _refuse_missing(list(files), (str(image["file_name"]) for image in images), "instances_*.json", "entries")
    for name, file in files.items():
        (out / "val2017").mkdir(exist_ok=True)
        (out / "val2017" / name).write_bytes(read_bytes(file))
        reporter.images(1)
    (out / "annotations").mkdir()
    numbered = [{**instance, "id": i} for i, instance in enumerate(instances, start=1)]
    document = {"info": {}, "images": images, "annotations": numbered, "categories": categories}
    (out / "annotations/instances_val2017.json").write_text(json.dumps(document), encoding="utf-8")
    boxes: dict[int, list[str]] = {}
    for instance in instances:
        if not instance["iscrowd"]:
            row = f"{instance['category_id']} " + " ".join(f"{value:.2f}" for value in instance["bbox"])
            boxes.setdefault(instance["image_id"], []).append(row)
    return {
        image["file_name"]: f"{image['width']} {image['height']} {' '.join(sorted(boxes.get(image['id'], [])))}"
        for image in images
    }


def _pictures(source: Path, wanted: Sequence[str]) -> dict[str, Path]:
    """Where the pictures of COCO lie."""
    folders = [source / below / split for below in ("", "images") for split in SPLITS]
    there: dict[str, Path] = {}
    for folder in reversed([folder for folder in folders if folder.is_dir()]):
        there |= {name: folder / name for name in wanted if (folder / name).is_file()}
    _refuse_missing(wanted, there, source, f"pictures in {' or '.join(SPLITS)}")
    return {name: there[name] for name in wanted}


def _refuse_missing(wanted: Sequence[str], there: Iterable[str], source: Path | str, what: str) -> None:
    names = set(there)
    if missing := [name for name in wanted if name not in names]:
        raise UsageError(
            f"expected {len(wanted):,} {what} in {source}, {len(missing):,} are missing, the first of them "
            f"{missing[0]}: complete the folder"
        )


def _area(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The area of a polygon."""
    after = (*xs[1:], xs[0]), (*ys[1:], ys[0])
    return abs(sum(x * v - u * y for x, y, u, v in zip(xs, ys, *after, strict=True))) / 2


COCO = "the folder of COCO 2017 with annotations/instances_{val,train}2017.json, val2017/ and train2017/"
COCO128 = "the folder of coco128-seg (github.com/ultralytics/assets), with images/train2017/ and labels/train2017/"
ILSVRC = "the folder of ILSVRC2012's validation set, as `cliploc datasets ilsvrc` describes it"
SAMPLES = "a clone of github.com/EliSchwartz/imagenet-sample-images"
SETS = {
    about.name: about
    for about in (
        EvaluationSet("ilsvrc-677", "677 of ILSVRC's validation set", "wsol", "ilsvrc_val_dev", ILSVRC, _ilsvrc),
        EvaluationSet("ilsvrc-312", "312 others of it", "wsol", "ilsvrc_val_report", ILSVRC, _ilsvrc),
        EvaluationSet("coco-65", "65 of COCO's training set", "coco", "coco_dev", COCO128, _coco128),
        EvaluationSet("coco-174", "174 others of COCO", "coco", "coco_tune", COCO, _coco),
        EvaluationSet(
            "imagenet-1000",
            "one training picture for each class",
            "",
            "imagenet_one_per_class",
            SAMPLES,
            _one_per_class,
        ),
    )
}
