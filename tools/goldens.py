"""Did the results change? Writes what a fixed set of commands gives, and compares two such folders.

    python tools/goldens.py write before           # in one checkout
    python tools/goldens.py write after            # in another, or after a change
    python tools/goldens.py compare before after   # exit code 1: something differs

`write` runs the cliploc of its own checkout, offline: pictures localized, classified and segmented, raw maps of all
methods on the tests' towers, a folder labelled and corrected in all formats, the tables of every evaluation; also of
some pictures of ../shared/data where that is there. JSON is kept as a line a value. What differs between two runs of
the same code is left out: `DROPPED` and `VERSION` say what. Compare on one machine: other processors round otherwise.
"""

import argparse
import difflib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
PHOTOS = ROOT / "src" / "cliploc" / "demo_photos"
SEVERAL = {"bee.jpg", "cat.jpg", "dogs.jpg", "osprey.jpg", "otters.jpg", "wren.jpg"}
NAMES = '-p cat -p "dog|puppy" -p bird -p otter -p "cup|coffee mug" -p bee'
FIND = f"localize photos {NAMES} --json"
LABELS = NAMES.replace("otter", "zorblat")  # a name that no model knows: corrections alone teach it
READ = f"annotate variants {LABELS} --recipe fast --teach off --out OUT --apply"
BOXES = "benchmark boxes --method cam,grad_cam,layer_cam --out OUT --dataset"
SEGMENTATION = "benchmark segmentation --out OUT --dataset coco_object"
PRESENCE = "benchmark presence --out OUT --dataset coco"
FAITHFULNESS = "faithfulness --dataset wsol --root wsol --limit 3 --steps 8"
CORRECTED = "runs/annotate/untaught/corrected"
DROPPED = {
    "run",
    "stamps",
    "schema_version",
    "cliploc_version",
    "text_cache",
    "seconds",
    "machine",
    "cost",
}  # keys of JSON
VERSION = re.compile(r"cliploc \d[\w.]*|, [\d.]+ s\b|and [\d.]+ s of processor time")
KEPT = re.compile(r"(coco|labelstudio|summary)\.json|(boxes|tables)\.csv|[^/]*\.xml|(voc|yolo)/.*")
NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)")


def commands() -> Iterator[tuple[str, str]]:
    """A title and a command line; of the folder OUT, which is `runs/TITLE`, exports and tables are kept."""
    yield "localize/mini", FIND
    yield "localize/fast", f"{FIND} --recipe fast"
    yield "localize/mini-vit", f"{FIND} --model mini-vit"
    yield "localize/masks", f"{FIND} --masks"
    yield "localize/grad_cam", f"{FIND} --method grad_cam"
    yield "localize/gscore_cam", f"{FIND.replace('photos', 'photos/cat.jpg')} --method gscore_cam -o top_k=64"
    yield "classify", "classify photos --json"
    yield "segment", f"segment photos/cat.jpg photos/coffee.jpg {NAMES} --json"
    for name, options in (("taught", "--teach on"), ("untaught", "--teach off"), ("masks", "--masks --unsure")):
        label = f"annotate variants {LABELS} --json --format coco,voc,yolo,cvat,labelstudio,csv {options} --out OUT"
        yield f"annotate/{name}/drafts", label
        yield f"annotate/{name}/corrected", f"{label} --apply corrected.json"
    yield "annotate/by itself", "annotate variants -p animal --min-presence 0 --json --out OUT"
    for file in ("coco.json", "voc", "yolo", "cvat.xml", "reviewed.json"):  # what we write, we read
        yield f"annotate/read {file}", f"{READ} {CORRECTED}/{file}"
    yield "evaluations/boxes", f"{BOXES} wsol --root wsol --save-maps"
    yield "evaluations/recipe", "benchmark boxes --out OUT --dataset coco --root coco"
    yield "evaluations/segmentation", f"{SEGMENTATION} --root coco --method cam --limit 4"
    metrics = "deletion,insertion,road,grid_pointing,average_drop,increase,randomisation"
    yield "evaluations/faithfulness", f"benchmark {FAITHFULNESS} --out OUT --method cam,grad_cam --metric {metrics}"
    yield "evaluations/presence", f"{PRESENCE} --root coco --negatives random"
    maps = "--maps runs/evaluations/boxes/maps/mini_cam --json"
    yield "evaluations/boxes of maps", f"evaluate boxes {maps} --metadata wsol/metadata"
    yield "evaluations/faithfulness of maps", f"evaluate {FAITHFULNESS} {maps}"
    if DATA.is_dir():
        yield "data/boxes", f"{BOXES} wsol --root {DATA}/ilsvrc_val_dev --limit 8"
        yield "data/segmentation", f"{SEGMENTATION} --root {DATA}/coco_dev --limit 3"
        yield "data/presence", f"{PRESENCE} --root {DATA}/coco_dev --limit 8"


def coco(photos: list[dict[str, Any]], labels: list[str]) -> str:
    """COCO's JSON of the true boxes, and of a polygon in each."""
    images, boxes = [], []
    for place, photo in enumerate(photos, 1):
        images.append({"id": place, "file_name": photo["file"], "width": photo["width"], "height": photo["height"]})
        for box in photo["boxes"]:
            if box["name"] in labels:
                x0, y0, x1, y1 = box["xyxy"]
                one = {"id": len(boxes) + 1, "image_id": place, "category_id": labels.index(box["name"]) + 1}
                one |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
                boxes.append({**one, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]})
    categories = [{"id": place, "name": name} for place, name in enumerate(labels, 1)]
    return json.dumps({"images": images, "annotations": boxes, "categories": categories})


def make_variants(photos: list[dict[str, Any]], to: Path) -> list[dict[str, Any]]:
    """Each photograph also mirrored and upside down, with its boxes: enough pictures of a name to teach it."""
    to.mkdir()
    made = []
    for one, mirrored, turned in itertools.product(photos, (0, 1), (0, 1)):
        picture = Image.open(PHOTOS / one["file"]).convert("RGB")
        picture = ImageOps.mirror(picture) if mirrored else picture
        name, boxes = f"{Path(one['file']).stem}{mirrored}{turned}.png", []
        (ImageOps.flip(picture) if turned else picture).save(to / name)
        for box in one["boxes"]:
            x0, y0, x1, y1 = box["xyxy"]
            x0, x1 = (one["width"] - x1, one["width"] - x0) if mirrored else (x0, x1)
            y0, y1 = (one["height"] - y1, one["height"] - y0) if turned else (y0, y1)
            boxes.append({"name": box["name"], "xyxy": [x0, y0, x1, y1]})
        made.append({**one, "file": name, "boxes": boxes})
    return made


def make_inputs(work: Path) -> None:
    """The demo's photographs as a folder and as data sets in two layouts, and what corrects most of their variants."""
    photos = json.loads((PHOTOS / "photos.json").read_text(encoding="utf-8"))
    for folder in ("photos", "coco/val2017", "wsol"):
        (work / folder).mkdir(parents=True)
        for one in photos:
            shutil.copy(PHOTOS / one["file"], work / folder)
    (work / "coco/annotations").mkdir()
    words = (ROOT / "src/cliploc/find/prompt_data/coco.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split("|")[0] for line in words if not line.startswith("#")]  # COCO's 80 categories
    (work / "coco/annotations/instances_val2017.json").write_text(coco(photos, names))
    variants = make_variants([one for one in photos if one["file"] in SEVERAL], work / "variants")
    corrected = [one for place, one in enumerate(variants) if place % 4 < 3]
    document = coco(corrected, ["cat", "dog", "bird", "otter", "cup", "bee"])
    (work / "corrected.json").write_text(document.replace('"otter"', '"zorblat"'))
    (work / "wsol/metadata").mkdir()
    firsts = [(one, one["boxes"][0]) for one in photos]
    labels = sorted({box["name"] for _, box in firsts})
    files = {
        "synsets.csv": ["label,wnid,synset_words", *(f"{at},n{at:08},{name}" for at, name in enumerate(labels))],
        "metadata/image_ids.txt": [one["file"] for one in photos],
        "metadata/image_sizes.txt": [f"{one['file']},{one['width']},{one['height']}" for one in photos],
        "metadata/class_labels.txt": [f"{one['file']},{labels.index(box['name'])}" for one, box in firsts],
        "metadata/localization.txt": [",".join(map(str, (one["file"], *box["xyxy"]))) for one, box in firsts],
    }
    for file, lines in files.items():
        (work / "wsol" / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def lines_of(value: Any, where: str = "") -> Iterator[str]:
    """A JSON value as lines of its places and what is there."""
    if isinstance(value, dict | list) and value:
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in DROPPED:
                yield from lines_of(one, f"{where}/{key}")
    else:
        yield f"{where}: {json.dumps(value, ensure_ascii=False)}"


def keep(path: Path, content: bytes, work: Path) -> None:
    """Writes text without what is left out, and other bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".json", ".csv", ".xml", ".yaml", ".txt"):
        text = content.decode()
        text = "\n".join(lines_of(json.loads(text))) if path.suffix == ".json" else text
        content = VERSION.sub("", text.replace(str(work), "WORK").replace(str(DATA), "DATA")).encode()
    path.write_bytes(content)


def write_raw_maps(out: Path) -> None:
    """Every method on every tower that the tests hold it to; those that need a guide get a random one."""
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    import torch
    from tests.methods import towers
    from tests.tiny import context

    features = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    guided = [(method.name, "vit") for method in towers.methods if method.needs().guide]
    for name, kind in [*towers.cases(), *guided]:
        method, options = towers.methods.get(name), towers.QUICK.get(name, {})
        given = {"guide": lambda: features} if (name, kind) in guided else {}
        needs, texts = method.needs(**options), ("red", "green", "a zebra")
        ctx = context(towers.build(kind), towers.pictures(kind), texts, needs, **given)
        (out / kind).mkdir(parents=True, exist_ok=True)
        np.savez(out / kind / f"{name}.npz", maps=method.function(ctx, **options).detach().numpy())


def write(out: Path, only: str) -> None:
    """All, or the titles in which the regular expression `only` is found."""
    if re.search(only, "raw maps"):
        write_raw_maps(out / "raw maps")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name).resolve()
        make_inputs(work)
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "CLIPLOC_CACHE": str(work / "cache")}
        for title, command in commands():
            if not re.search(only, title):
                continue
            started, folder = time.monotonic(), work / "runs" / title
            if title.endswith("/corrected"):
                shutil.copytree(folder.with_name("drafts"), folder, symlinks=True)
            if title.endswith("reviewed.json"):  # Label Studio's name for what a person has approved
                drafts = (work / CORRECTED / "labelstudio.json").read_text(encoding="utf-8")
                (work / CORRECTED / "reviewed.json").write_text(drafts.replace('"predictions"', '"annotations"'))
            arguments = [str(folder) if one == "OUT" else one for one in shlex.split(command)]
            told = [sys.executable, "-m", "cliploc", *arguments]
            done = subprocess.run(told, cwd=work, env=environment, capture_output=True, check=False)
            if done.returncode:
                raise SystemExit(f"cliploc {command} ended with {done.returncode}:\n{done.stderr.decode()}")
            keep(out / title / f"printed.{'json' if '--json' in arguments else 'txt'}", done.stdout, work)
            for path in sorted(one for one in folder.rglob("*") if one.is_file() and not one.is_symlink()):
                if KEPT.fullmatch(inner := path.relative_to(folder).as_posix()):
                    keep(out / title / inner, path.read_bytes(), work)
            print(f"{title}: {time.monotonic() - started:.0f} s", file=sys.stderr)


def differences(before: Path, after: Path, ignore: str) -> list[str]:
    """How two files differ, the largest difference first if all are of numbers."""
    if before.suffix == ".npz":
        one, other = np.load(before)["maps"], np.load(after)["maps"]
        if one.shape != other.shape:
            return [f"shape {one.shape} before, {other.shape} after"]
        at = np.unravel_index(np.abs(one - other).argmax(), one.shape)
        gap, where = abs(one[at] - other[at]), [int(place) for place in at]
        return [f"largest difference {gap:.3g}: {one[at]} before, {other[at]} after at {where}"]
    try:
        texts = [path.read_text(encoding="utf-8").splitlines() for path in (before, after)]
    except UnicodeDecodeError:
        return ["other bytes"]
    old, new = ([line for line in text if not (ignore and re.search(ignore, line))] for text in texts)
    if [NUMBER.sub("", line) for line in old] != [NUMBER.sub("", line) for line in new]:
        return list(difflib.unified_diff(old, new, "before", "after", n=0, lineterm=""))[2:]
    gaps = []
    for one, other in zip(old, new, strict=True):
        pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=False)
        gap = max((abs(float(x) - float(y)) for x, y in pairs), default=0)
        gaps += [(gap, f"numbers differ by {gap:.3g}: {one} before, {other} after")] if one != other else []
    return [line for _, line in sorted(gaps, key=lambda entry: -entry[0])]


def compare(before: Path, after: Path, ignore: str, shown: int) -> int:
    """Prints which files differ and how; returns how many."""
    files = [{one.relative_to(side).as_posix() for one in side.rglob("*") if one.is_file()} for side in (before, after)]
    differing = 0
    for name in sorted(files[0] | files[1]):
        if name not in files[0] & files[1]:
            found = [f"only {'before' if name in files[0] else 'after'}"]
        elif (before / name).read_bytes() == (after / name).read_bytes():
            continue
        else:
            found = differences(before / name, after / name, ignore)
        if found:
            differing += 1
            print(f"{name}: {len(found)} lines", *found[:shown], sep="\n    ")
    print(f"{differing} of {len(files[0] | files[1])} files differ")
    return differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("write", "compare"))
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--only", default="", help="write the parts in whose titles this is, such as annotate")
    parser.add_argument("--ignore", default="", help="regular expression of lines that changed on purpose")
    parser.add_argument("--shown", type=int, default=5, help="lines of each file")
    given = parser.parse_args()
    if len(given.folders) != (1 if given.command == "write" else 2):
        parser.error("expected write DIR or compare DIR DIR")
    if given.command == "compare":
        return int(compare(*given.folders, given.ignore, given.shown) > 0)
    if given.folders[0].exists() and not given.only:
        parser.error(f"{given.folders[0]} is there already")
    write(given.folders[0], given.only)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
