"""Did the results change? Records a fixed benchmark, the demo's boxes and an annotate run, and compares two records.

    python tools/compare_results.py record before.json      # with one version of cliploc
    python tools/compare_results.py record after.json       # with another
    python tools/compare_results.py compare before.json after.json

`record` runs the commands of the `cliploc` that this Python imports; the ILSVRC pictures must lie in ../shared/data, or
in the folder that --root names. `compare` prints every number or text that differs, and the keys that only one record
has. It exits with 1 when a value differs; keys that only one has are told, and are no difference.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PHOTOS = Path(__file__).parent.parent / "src" / "cliploc" / "demo_photos"
ROOT = Path(__file__).parent.parent.parent / "shared" / "data" / "ilsvrc_val_dev"
LABELS = ("cat", "dog|puppy", "otter", "bee", "rocket", "cup|coffee mug", "bicycle", "drum")
BENCHMARKS = {
    "mini": ["--model", "mini", "--method", "cam,grad_cam,layer_cam,cam+layer_cam", "--scales", "1,1.5", "--flip"],
    "mini-vit": ["--model", "mini-vit", "--method", "naclip,legrad,gem,rollout", "--refine", "caa,guided"],
}
# Paths, times, versions and what describes the machine differ between any two runs.
SKIPPED_KEYS = {
    *("out", "path", "source", "file", "image_url"),
    *("seconds", "started", "stamps", "date_created", "cliploc_version", "schema_version"),
}
TOLERANCE = 1e-6  # of numbers, relative: what a changed order of sums may do


def run(*arguments: str) -> str:
    """Runs the command and returns what it printed."""
    done = subprocess.run([sys.executable, "-m", "cliploc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"cliploc {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def record(root: Path, limit: int) -> dict[str, Any]:
    """What the commands give, by command."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, options in BENCHMARKS.items():
            out = folder / title
            dataset = ["--dataset", "wsol", "--root", str(root), "--limit", str(limit)]
            run("benchmark", *dataset, *options, "--out", str(out))
            results[f"benchmark {title}"] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        printed = run("demo", "--out", str(folder / "demo")).splitlines()
        results["demo"] = [line for line in printed if str(folder) not in line]
        names = [part for name in LABELS for part in ("-p", name)]
        photos = sorted(str(path) for path in PHOTOS.glob("*.jpg"))
        results["localize"] = json.loads(run("localize", *photos, *names, "--json"))
        labels = folder / "labels.txt"
        labels.write_text("\n".join(LABELS), encoding="utf-8")
        out = folder / "drafts"
        run(
            "annotate", str(PHOTOS), "--labels", str(labels), "--format", "coco", "--groups", "split", "--out", str(out)
        )
        results["annotate"] = json.loads((out / "coco.json").read_text(encoding="utf-8"))
        results["annotate summary"] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record", help="run the commands and write what they gave")
    recorder.add_argument("file", type=Path)
    recorder.add_argument("--root", type=Path, default=ROOT, help="pictures in the WSOL layout")
    recorder.add_argument("--limit", type=int, default=64, help="pictures of the benchmarks")
    comparer = commands.add_parser("compare", help="print what differs between two records")
    comparer.add_argument("before", type=Path)
    comparer.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "record":
        given.file.write_text(json.dumps(record(given.root, given.limit), indent=1), encoding="utf-8")
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
