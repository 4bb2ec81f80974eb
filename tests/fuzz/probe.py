"""`python -m tests.fuzz.probe [AREA …]`: hostile files, each in a process of its own, counted by area.

A case is right when the program reads it or refuses it by one line, within `--seconds` of processor time (three times
as many and 30 more by the clock, for what waits) and two gigabytes of memory. It prints every case that is not, and for
each area the number of cases and of failures. The files are made in a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import cliploc.segmentation  # noqa: F401 - once, not in each process
from cliploc.cli import main as command_line
from cliploc.datasets import open_dataset
from cliploc.datasets._infra.labelled import read_labels
from cliploc.datasets.voc import read_annotation
from cliploc.errors import CliplocError
from cliploc.jobs.corrections import read_corrections

MOST_MEMORY = 2_000  # MB more than before
SIZES = {"a.jpg": (640, 480), "b/a.jpg": (640, 480), **{f"d/{i}.jpg": (640, 480) for i in range(200)}}
LABELS = (("cat",), ("dog",))
MANY = 100_000
Case = Callable[[Path], object]  # of an empty folder
AREAS: dict[str, dict[str, Case]] = {}


def case(area: str, name: str) -> Callable[[Case], Case]:
    """Registers a case."""

    def register(run: Case) -> Case:
        AREAS.setdefault(area, {})[name] = run
        return run

    return register


@dataclass(frozen=True)
class Outcome:
    """How a case ended; `wrong` says what is not right, "" where nothing is."""

    wrong: str
    seconds: float
    megabytes: float


# ---------------------------------------------------------------------------------------------- COCO, read in two ways
def coco(**parts: object) -> dict[str, object]:
    """A COCO document of one picture and one box, with parts replaced."""
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}],
        **parts,
    }


def box(number: int, **parts: object) -> dict[str, object]:
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], **parts}


def image(number: int, **parts: object) -> dict[str, object]:
    return {"id": number, "file_name": "a.jpg", "width": 640, "height": 480, **parts}


STAR = [float(v) for k in range(20_000) for v in (0, 0, 639, 479)][:80_000]
COCO: dict[str, Callable[[], object]] = {
    "many boxes in one picture": lambda: coco(annotations=[box(i) for i in range(MANY)]),
    "many boxes of one id": lambda: coco(annotations=[box(1) for _ in range(MANY)]),
    "many categories": lambda: coco(
        categories=[{"id": i, "name": f"c{i}"} for i in range(MANY)],
        annotations=[box(i, category_id=i) for i in range(MANY)],
    ),
    "many categories of one id": lambda: coco(categories=[{"id": 1, "name": f"c{i}"} for i in range(MANY)]),
    "many pictures of one id": lambda: coco(
        images=[image(1, file_name=f"d/{i % 200}.jpg") for i in range(MANY // 10)],
        annotations=[box(i) for i in range(MANY)],
    ),
    "many pictures of one name": lambda: coco(
        images=[image(i) for i in range(MANY // 10)], annotations=[box(i, image_id=i) for i in range(MANY // 10)]
    ),
    "a box of many numbers": lambda: coco(annotations=[box(1, bbox=[1.0] * 1_000_000)]),
    "a corner walked many times": lambda: coco(annotations=[box(1, segmentation=[STAR])]),
    "many polygons": lambda: coco(
        annotations=[box(i, segmentation=[[0, 0, 639, 0, 639, 479]] * 900) for i in range(100)]
    ),
    "many run lengths": lambda: coco(
        annotations=[
            box(i, segmentation={"counts": [1] * (640 * 480), "size": [480, 640]}, iscrowd=1) for i in range(20)
        ]
    ),
    "a run length without an end": lambda: coco(annotations=[box(1, segmentation={"counts": [1e300]}, iscrowd=1)]),
    "a huge picture": lambda: coco(images=[image(1, width=10**9, height=10**9)]),
    "a huge size": lambda: coco(images=[image(1, width=10**300, height=10**300)]),
    "huge numbers": lambda: coco(annotations=[box(1, bbox=[1e308, -1e308, 1e308, 1e308])]),
    "a number as text": lambda: coco(annotations=[box(1, bbox=["9" * 100_000, "1e999", "0x1", "٣"])]),
    "a number of many digits": lambda: coco(annotations=[box(10**4000, image_id=10**4000)]),
    "lists as ids": lambda: coco(annotations=[box(1, image_id=[1], category_id={})]),
    "null everywhere": lambda: coco(images=[None], categories=[None], annotations=[None]),
    "texts as lists": lambda: coco(images="a" * MANY, categories="b" * MANY, annotations="c" * MANY),
    "a name of many folders": lambda: coco(images=[image(1, file_name="x/" * MANY + "a.jpg")]),
    "a name of many dots": lambda: coco(images=[image(1, file_name="../" * MANY + "a.jpg")]),
    "an address of many fields": lambda: coco(images=[image(1, file_name="http://a/?" + "d=a&" * MANY)]),
    "an address of many percents": lambda: coco(images=[image(1, file_name="%41" * MANY * 10)]),
    "many unknown categories": lambda: coco(annotations=[box(i, category_id=i + 7) for i in range(MANY)]),
    "many pictures that nobody knows": lambda: coco(images=[image(i, file_name=f"{i}/z.jpg") for i in range(MANY)]),
}
DEEP = {"deep lists": "[" * 1_000_000, "deep objects": '{"a":' * 1_000_000}


def apply_coco(make: Callable[[], object]) -> Case:
    def run(folder: Path) -> None:
        (folder / "c.json").write_text(json.dumps(make()))
        read_corrections(folder / "c.json", SIZES, LABELS)

    return run


def dataset(kind: str, make: Callable[[], object]) -> Case:
    def run(folder: Path) -> None:
        photos(folder / "val2017")
        (folder / "annotations").mkdir()
        made: dict[str, Any] = make()  # type: ignore[assignment]
        if kind == "coco_object" and len(made["categories"]) == 1:  # it wants COCO's 80
            made["categories"] = [{"id": i, "name": f"c{i}"} for i in range(1, 81)]
        (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(made))
        if kind == "coco":
            open_dataset("coco", folder)
            return
        from cliploc.datasets import open_labelled

        for one in open_labelled(kind, folder).samples[:3]:
            one.truth.read()

    return run


def photos(folder: Path) -> None:
    """The pictures of `SIZES`, small files."""
    folder.mkdir()
    for name in ("a.jpg", "d/0.jpg", "d/1.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (640, 480)).save(folder / name)


for title, made in COCO.items():
    case("corrections: COCO", title)(apply_coco(made))
    case("data sets: COCO", title)(dataset("coco", made))
    case("data sets: COCO-Object", title)(dataset("coco_object", made))
for title, text in DEEP.items():

    def deep(folder: Path, text: str = text) -> None:
        (folder / "c.json").write_text(text)
        read_corrections(folder / "c.json", SIZES, LABELS)

    case("corrections: COCO", title)(deep)

# ------------------------------------------------------------------------------------------------------ YOLO, VOC, CVAT
LAUGHS = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha" * 50}">' for i in range(9))
VOC_OBJECT = (
    "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>{}</object>"
)
POLYGON = "<polygon><x1>1</x1><y1>1</y1><x2>90</x2><y2>1</y2><x3>9</x3><y3>90</y3></polygon>"
VOC_HEAD = "<annotation><filename>a.jpg</filename><size><width>640</width><height>480</height></size>"
XMLS: dict[str, Callable[[], bytes]] = {
    "a billion laughs": lambda: f"<!DOCTYPE a [{LAUGHS}]><annotation><filename>&e8;</filename></annotation>".encode(),
    "a billion laughs in UTF-16": lambda: (
        f'<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [{LAUGHS}]><annotation><filename>&e8;</filename>'
        "</annotation>"
    ).encode("utf-16"),
    "an entity in UTF-16": lambda: (
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY e "cat">]>'
        f"{VOC_HEAD}{VOC_OBJECT.format('&e;', '')}</annotation>"
    ).encode("utf-16"),
    "an external entity": lambda: (
        b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation><filename>&e;</filename></annotation>'
    ),
    "an external document type": lambda: (
        b'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><annotation><filename>a.jpg</filename></annotation>'
    ),
    "an unknown encoding": lambda: b'<?xml version="1.0" encoding="nobody"?><annotation/>',
    "deep": lambda: b"<a>" * 1_000_000,
    "deep and closed": lambda: b"<annotation>" + b"<a>" * 300_000 + b"</a>" * 300_000 + b"</annotation>",
    "many objects": lambda: (VOC_HEAD + VOC_OBJECT.format("cat", "") * MANY + "</annotation>").encode(),
    "many names": lambda: (
        VOC_HEAD + "".join(VOC_OBJECT.format(f"c{i}", "") for i in range(MANY)) + "</annotation>"
    ).encode(),
    "many polygons": lambda: (VOC_HEAD + VOC_OBJECT.format("cat", POLYGON) * 20_000 + "</annotation>").encode(),
    "a huge attribute": lambda: b"<annotations><image name='" + b"a/" * 1_000_000 + b"'/></annotations>",
    "many images": lambda: (
        b"<annotations>" + b"<image name='a.jpg' width='640' height='480'/>" * MANY + b"</annotations>"
    ),
    "many boxes": lambda: (
        b"<annotations><image name='a.jpg' width='640' height='480'>"
        + b"<box label='cat' xtl='1' ytl='1' xbr='9' ybr='9'/>" * MANY
        + b"</image></annotations>"
    ),
    "numbers that are none": lambda: (
        b"<annotations><image name='a.jpg' width='1e99' height='" + b"9" * 5000 + b"'/></annotations>"
    ),
    "nothing": lambda: b"",
}


def xml_file(make: Callable[[], bytes]) -> Case:
    def run(folder: Path) -> None:
        (folder / "c.xml").write_bytes(make())
        found = read_corrections(folder / "c.xml", SIZES, LABELS)
        assert "root:" not in str(found)

    return run


def xml_folder(make: Callable[[], bytes]) -> Case:
    def run(folder: Path) -> None:
        (folder / "Annotations").mkdir()
        (folder / "Annotations" / "a.xml").write_bytes(make())
        with contextlib.suppress(CliplocError):
            read_annotation(folder / "Annotations" / "a.xml")
        found = read_corrections(folder, SIZES, LABELS)
        assert "root:" not in str(found)
        assert found.pictures.keys() == set() or b"ENTITY" not in make().replace(b"\0", b"")

    return run


for title, content in XMLS.items():
    case("corrections: CVAT", title)(xml_file(content))
    case("corrections: VOC", title)(xml_folder(content))

MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))
ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
YAMLS: dict[str, Callable[[], str]] = {
    "aliases": lambda: ALIASES + "names: *a11\n",
    "merged aliases": lambda: MERGED + "names: [cat]\n",
    "deep lists": lambda: "names: " + "[" * MANY,
    "no YAML": lambda: "names: [cat\n\t- :",
    "an object": lambda: "names: !!python/object/apply:os.system ['true']\n",
    "many names": lambda: "names:\n" + "".join(f"- c{i}\n" for i in range(20_000)),
    "large": lambda: "names: [" + "a" * 30_000_000 + "]",
    "names that are none": lambda: "names: 3\n",
    "huge numbers": lambda: "names: {" + "9" * 5000 + ": cat}\n",
}
LINES: dict[str, Callable[[], str]] = {
    "many boxes": lambda: "0 0.5 0.5 0.1 0.1\n" * MANY,
    "many polygons": lambda: ("0 " + "0.5 0.5 " * 1000 + "\n") * 1000,
    "numbers that are none": lambda: "0 nan inf -1 1e999\n",
    "a huge class": lambda: "9" * 5000 + " 0.5 0.5 0.1 0.1\n",
    "one long line": lambda: "0" * 10_000_000,
}


def yolo(described: Callable[[], str], lines: Callable[[], str]) -> Case:
    def run(folder: Path) -> None:
        (folder / "labels").mkdir()
        (folder / "data.yaml").write_text(described())
        (folder / "labels" / "a.txt").write_text(lines())
        read_corrections(folder, SIZES, LABELS)

    return run


for title, described in YAMLS.items():
    case("corrections: YOLO", title)(yolo(described, lambda: "0 0.5 0.5 0.1 0.1\n"))
for title, lines in LINES.items():
    case("corrections: YOLO", f"{title}, lines")(yolo(lambda: "names: [cat]\n", lines))


@case("corrections: COCO", "many pictures of one file name in the run")
def _(folder: Path) -> None:
    sizes = {f"{i}/a.jpg": (640, 480) for i in range(20_000)}
    named = [image(i, file_name=f"z{i}/a.jpg") for i in range(20_000)]
    (folder / "c.json").write_text(json.dumps(coco(images=named)))
    read_corrections(folder / "c.json", sizes, LABELS)


# --------------------------------------------------------------------------------------------------------- label maps
def bomb(folder: Path) -> None:
    """A PNG of 30,000 × 30,000 pixels in a megabyte."""
    Image.new("L", (30_000, 30_000)).save(folder)


MAPS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a bomb": bomb,
    "16 bits": lambda path: Image.fromarray(np.full((480, 640), 60_000, np.uint16)).save(path),
    "32 bits": lambda path: Image.fromarray(np.full((480, 640), 2**30, np.int32)).save(path, "TIFF"),
    "floats": lambda path: Image.fromarray(np.full((480, 640), np.nan, np.float32)).save(path, "TIFF"),
    "colours": lambda path: Image.new("RGB", (640, 480)).save(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "nothing": lambda path: path.write_bytes(b""),
    "another size": lambda path: Image.new("L", (8, 8)).save(path),
    "a loop": lambda path: path.symlink_to(path),
}


def label_map(make: Callable[[Path], object]) -> Case:
    def run(folder: Path) -> None:
        make(folder / "a.png")
        read_labels(folder / "a.png")

    return run


def command(*words: object) -> None:
    """The command line; a traceback, or an error of several lines, is a mistake."""
    told, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(out):
        code = command_line([str(word) for word in words])
    said = told.getvalue()
    assert code in (0, 1, 2), f"exit code {code}: {said[-300:]}"
    assert "Traceback" not in said, said[-300:]
    assert "mistake in cliploc" not in said, said[-300:]


def predictions(make: Callable[[Path], object]) -> Case:
    def run(folder: Path) -> None:
        for name in ("true", "found"):
            (folder / name).mkdir()
        Image.new("L", (640, 480)).save(folder / "true" / "a.png")
        make(folder / "found" / "a.png")
        (folder / "classes.txt").write_text("background\ncat\n")
        truth = ["--truth", folder / "true", "--class-list", folder / "classes.txt"]
        command("evaluate", "--task", "segmentation", "--predictions", folder / "found", *truth)

    return run


for title, make_map in MAPS.items():
    case("label maps", title)(label_map(make_map))
    case("label maps", f"{title}, evaluate")(predictions(make_map))


# ------------------------------------------------------------------------------------------------------------- run it
def outcome(run: Case, seconds: int) -> Outcome:
    """How a case ends in this process; its processor time is limited from here on."""
    start, before = time.process_time(), peak_megabytes()
    resource.setrlimit(resource.RLIMIT_CPU, (int(start) + seconds + 1, resource.RLIM_INFINITY))
    wrong = ""
    with tempfile.TemporaryDirectory() as made:
        try:
            run(Path(made))
        except CliplocError as error:
            wrong = f"an error of several lines: {error}" if "\n" in str(error) else ""
        except SystemExit as error:
            wrong = "" if error.code in (0, 1, 2) else f"exit code {error.code}"
        except BaseException as error:
            wrong = f"{type(error).__name__}: {str(error)[:200]}"
        more = peak_megabytes() - before
    if not wrong and more > MOST_MEMORY:
        wrong = f"took {more:,.0f} MB"
    return Outcome(wrong, time.process_time() - start, more)


def peak_megabytes() -> float:
    """The most memory of this process since the last call."""
    [line] = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM:")]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    return int(line.split()[1]) / 1024


def told_by_child(run: Case, seconds: int, told: Connection) -> None:
    """Runs a case, and tells its outcome."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout = sys.stderr = io.StringIO()
    told.send(outcome(run, seconds))
    os._exit(0)


def tried(run: Case, seconds: int) -> Outcome:
    """The outcome of a case in a process of its own."""
    context = multiprocessing.get_context("fork")
    answer, told = context.Pipe(duplex=False)
    child = context.Process(target=told_by_child, args=(run, seconds, told))
    child.start()
    told.close()
    try:
        if not answer.poll(3 * seconds + 30):
            return Outcome("it waits", 0, 0)
        found: Outcome = answer.recv()
        return found
    except EOFError:
        child.join()
        return Outcome(f"killed ({child.exitcode}) after {seconds} s or for its memory", seconds, 0)
    finally:
        child.kill()
        child.join()


def main() -> int:
    """Probes, and says what was found."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz.probe", description=__doc__)
    options.add_argument("--seconds", type=int, default=20, help="of processor time for a case")
    options.add_argument("--slow", type=float, default=5, help="seconds from which a case is listed")
    options.add_argument("areas", nargs="*", metavar="AREA", help=f"beginnings of {', '.join(AREAS)}; all by default")
    given = options.parse_args()
    counts: list[tuple[str, int, int]] = []
    for area, cases in AREAS.items():
        if given.areas and not any(area.startswith(one) for one in given.areas):
            continue
        failures = 0
        for name, run in cases.items():
            found = tried(run, given.seconds)
            failures += bool(found.wrong)
            if found.wrong or found.seconds > given.slow:
                print(f"{area}, {name}: {found.wrong or 'right'} ({found.seconds:.1f} s, {found.megabytes:,.0f} MB)")
        counts.append((area, len(cases), failures))
        print(f"{area}: {len(cases)} cases, {failures} failures", flush=True)
    print(f"all: {sum(cases for _, cases, _ in counts)} cases, {sum(failures for *_, failures in counts)} failures")
    return 1 if any(failures for *_, failures in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
