"""Did the results change? Records what a fixed set of commands gives, and compares two records.

    python tools/compare_results.py record before.json --keep before     # with one version of cliploc
    python tools/compare_results.py record after.json --old before       # with another
    python tools/compare_results.py compare before.json after.json

`record` runs the `cliploc` that this Python imports (set PYTHONPATH to a checkout's `src`), with that checkout's tests:
the help of all commands; `localize` with both models and every recipe; the demo; the raw maps of all methods on tiny
towers; an annotate run in all formats, corrected and with the corrections exported; the three tasks of the benchmark,
each as it is and killed and resumed. It takes some minutes, or less with --only. With --old, it also resumes the runs
that another version has kept. The pictures must lie in ../shared/data, or in the folder that --data names. `compare`
prints every number or text that differs, and the keys that only one record has. It exits with 1 when a value differs;
keys that only one has are told, and are no difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

PHOTOS = Path(__file__).parent.parent / "src" / "cliploc" / "demo_photos"
DATA = Path(__file__).parent.parent.parent / "shared" / "data"
LABELS = ("cat", "dog|puppy", "otter", "bee", "rocket", "cup|coffee mug", "bicycle", "drum")
FORMATS = "coco,csv,cvat,labelstudio,voc,yolo"
BOXES = ["benchmark", "--dataset", "wsol", "--limit", "48", "--root", "ilsvrc_val_dev"]
BENCHMARKS = {
    "mini": [
        *BOXES, "--model", "mini", "--method", "cam,grad_cam,layer_cam,cam+layer_cam", "--scales", "1,1.5", "--flip",
    ],
    "mini-vit": [*BOXES, "--model", "mini-vit", "--method", "naclip,legrad,gem,rollout", "--refine", "caa,guided"],
    "segmentation": [
        *("benchmark", "--task", "segmentation", "--dataset", "coco_object", "--root", "coco_dev", "--limit", "36"),
        *("--model", "mini", "--method", "cam", "--refine", "affinity"),
    ],
    "faithfulness": [
        *("benchmark", "--task", "faithfulness", "--dataset", "wsol", "--root", "ilsvrc_val_dev", "--limit", "10"),
        *("--model", "mini", "--method", "cam,grad_cam", "--metric", "deletion,insertion,names,randomisation"),
        *("--steps", "7"),
    ],
}  # fmt: skip
# Paths, times, versions and what describes the machine differ between any two runs.
SKIPPED_KEYS = {
    *("out", "path", "source", "file", "image_url", "version", "python", "packages", "machine", "token"),
    *("sessions", "seconds", "started", "finished", "stamps", "date_created", "cliploc_version", "schema_version"),
}
TOLERANCE = 1e-6  # of numbers, relative: what a changed order of sums may do


def run(*arguments: str) -> str:
    """Runs the command and returns what it printed."""
    done = subprocess.run([sys.executable, "-m", "cliploc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"cliploc {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def contents(folder: Path) -> dict[str, Any]:
    """What the files of a run's folder say, by name; pages are left out, as they show what is in other files."""
    found: dict[str, Any] = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file() and not one.is_symlink()):
        name, kind = path.relative_to(folder).as_posix(), path.suffix
        if kind == ".json":
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        elif kind == ".parquet":
            found[name] = pq.read_table(path).to_pylist()
        elif kind in (".txt", ".xml", ".csv", ".yaml", ".md", ".jsonl"):
            found[name] = path.read_text(encoding="utf-8").replace(str(folder), "OUT").splitlines()
        elif kind == ".png":
            found[name] = hashlib.sha256(np.asarray(Image.open(path)).tobytes()).hexdigest()
        elif kind != ".html":
            found[name] = "there"
    return found


def helps() -> dict[str, list[str]]:
    """The help of every command."""
    first = run("--help").splitlines()
    names = [found[1] for line in first if (found := re.match(r"  ([a-z][a-z-]*) {2}", line))]
    return {"": first} | {name: run(name, "--help").splitlines() for name in names}


def tiny_maps() -> dict[str, Any]:
    """The raw maps of every method on the tests' tiny towers."""
    import cliploc

    sys.path.insert(0, str(Path(cliploc.__file__).parents[2]))
    from tests.saliency.towers import QUICK, build, cases, pictures
    from tests.tiny import KINDS, context

    from cliploc.saliency import methods

    found = {}
    for name, kind in cases():
        if kind in KINDS:
            method, options = methods.get(name), QUICK.get(name, {})
            ctx = context(build(kind), pictures(kind), ("red", "green", "a zebra"), method.needs(**options))
            found[f"{name} on {kind}"] = method.function(ctx, **options).tolist()
    return found


def localized() -> dict[str, Any]:
    """Boxes and masks of the demo's photographs, by model and recipe."""
    names = [part for name in LABELS[:4] for part in ("-p", name)]
    photos = sorted(str(path) for path in PHOTOS.glob("*.jpg"))
    return {
        f"{model} {recipe}": json.loads(
            run("localize", *photos, *names, "--model", model, "--recipe", recipe, "--json", "--masks")
        )
        for model in ("mini", "mini-vit")
        for recipe in ("fast", "default")
    }


def demo(folder: Path) -> list[str]:
    printed = run("demo", "--out", str(folder / "demo")).splitlines()
    return [line for line in printed if str(folder) not in line]


def annotated(folder: Path) -> dict[str, Any]:
    """A folder of drafts, and the same after a corrected set was read."""
    out, labels, corrected = folder / "drafts", folder / "labels.txt", folder / "corrected.json"
    labels.write_text("\n".join(LABELS), encoding="utf-8")
    told = ("--format", FORMATS, "--groups", "split", "--masks", "--out", str(out))
    run("annotate", str(PHOTOS), "--labels", str(labels), *told)
    before = contents(out)
    document = json.loads((out / "coco.json").read_text(encoding="utf-8"))
    del document["annotations"][0]
    for one in document["annotations"][::3]:
        one["bbox"][2] /= 2
        one.pop("segmentation", None)
    corrected.write_text(json.dumps(document), encoding="utf-8")
    run("annotate", str(PHOTOS), "--labels", str(labels), *told, "--apply", str(corrected))
    return {"drafts": before, "corrected": contents(out)}


def benchmarked(title: str, data: Path, folder: Path, old: Path | None) -> dict[str, Any]:
    """A benchmark as it is, killed when its first part is written and resumed, and resumed after an older version."""
    arguments = list(BENCHMARKS[title])
    at = arguments.index("--root") + 1
    arguments[at] = str(data / arguments[at])
    whole, killed, resumed = folder / title, folder / f"{title} killed", folder / f"{title} old"
    run(*arguments, "--out", str(whole))
    command = [sys.executable, "-m", "cliploc", *arguments, "--out", str(killed)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(killed.glob("parts/*.parquet")):
            time.sleep(0.02)
        process.kill()
    run(*arguments, "--out", str(killed))
    shutil.copytree(old / title if old else whole, resumed)
    parts = {path: path.read_bytes() for path in resumed.glob("parts/*")}
    run(*arguments, "--out", str(resumed))
    same = parts == {path: path.read_bytes() for path in resumed.glob("parts/*")}
    return {"whole": contents(whole), "killed": contents(killed), "old parts": "kept" if same else "computed again"}


def record(data: Path, keep: Path | None, old: Path | None, only: str) -> dict[str, Any]:
    """What the commands give, by command."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        sections: dict[str, Callable[[], Any]] = {
            "help": helps,
            "tiny towers": tiny_maps,
            "localize": localized,
            "demo": lambda: demo(folder),
            "annotate": lambda: annotated(folder),
            **{f"benchmark {one}": lambda one=one: benchmarked(one, data, folder, old) for one in BENCHMARKS},  # type: ignore[misc]
        }
        for title, make in sections.items():
            if only in title:
                started = time.monotonic()
                results[title] = make()
                print(f"{title}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return results


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, bool]]:
    """Each difference as a line, and whether it is one of values (True) or a key that only one has (False)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            inner = f"{where} → {key}" if where else str(key)
            if key in SKIPPED_KEYS:
                continue
            if key not in old or key not in new:
                yield f"{inner}: only {'before' if key in old else 'after'}", False
            else:
                yield from differences(old[key], new[key], inner)
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{where}: {len(old)} entries before, {len(new)} after", True
        for place, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from differences(one, other, f"{where}[{place}]")
    elif isinstance(old, int | float) and isinstance(new, int | float):
        if not math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"{where}: {old} before, {new} after", True
    elif old != new:
        yield f"{where}: {old!r} before, {new!r} after", True


def _digest(value: Any) -> str:
    """Bytes and dates of a table as text."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record", help="run the commands and write what they gave")
    recorder.add_argument("file", type=Path)
    recorder.add_argument("--data", type=Path, default=DATA, help="folder of ilsvrc_val_dev and coco_dev")
    recorder.add_argument("--keep", type=Path, help="folder for the runs, which stay there")
    recorder.add_argument("--old", type=Path, help="folder that another version kept its runs in")
    recorder.add_argument("--only", default="", help="the sections with this in their name")
    comparer = commands.add_parser("compare", help="print what differs between two records")
    comparer.add_argument("before", type=Path)
    comparer.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "record":
        recorded = record(given.data, given.keep, given.old, given.only)
        given.file.write_text(json.dumps(recorded, indent=1, default=_digest), encoding="utf-8")
        return 0
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (given.before, given.after))
    found = list(differences(before, after))
    for line, _ in found:
        print(line)
    changed = sum(is_value for _, is_value in found)
    print(f"{changed} values differ; {len(found) - changed} keys are only in one record")
    return int(changed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
