"""`python -m tests.fuzz.kills --kills 60 [--what annotate,apply,…]`: commands killed at random moments and run again.

Each command is run once undisturbed. Then, again and again, in an empty folder: it is started, killed without warning
(SIGKILL), perhaps started and killed once more, and run to its end. The folder must be that of the undisturbed run,
byte for byte; only times, tokens and what the manifest says of each session may differ. Half of the moments are drawn
from the time that the command takes, the others follow the writing of a file, as most harm could be done there. Each
start has a process of its own, in which torch is imported already.

With `--at-calls` the moments are chosen, not drawn: just before a call that changes a file or waits for the disk
(`CALLS`), a different one each time, evenly over all of the command's.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

from PIL import Image

from cliploc.cli import main as command_line
from cliploc.runs.store import FILE
from tests.commands import PHOTOS, begun
from tests.datasets import labelled
from tests.datasets.folders import lines, picture
from tests.jobs.samples import wsol_folder

PICTURES = {"annotate": 70, "benchmark": 70, "segmentation": 34, "faithfulness": 17}  # three parts each
QUICK = ("--method", "cam", "--image-size", "64", "--batch-size", "8", "--threads", "1", "--min-presence", "0")
PATIENCE = 300  # seconds
CALLS = [(os, "fsync"), (shutil, "rmtree"), *((Path, name) for name in ("replace", "rename", "unlink", "mkdir"))]
Fresh = Callable[[Path], object]


@dataclass(frozen=True)
class Command:
    """A command by its words without the folder; `fresh` makes a folder that it starts from."""

    words: Sequence[object]
    fresh: Fresh = lambda _: None

    def begin(self, out: Path, told: Path, last_call: int = 0) -> BaseProcess:
        """The command in a process of its own, which writes into `told`; killed before its `last_call`, 0: never."""
        return begun(run, [str(word) for word in (*self.words, "--out", out)], told, last_call)

    def end(self, out: Path, told: Path) -> None:
        """Runs the command to its end; FailedError if it ended by an error, or did not end."""
        process = self.begin(out, told)
        process.join(PATIENCE)
        if process.exitcode not in (0, 1):  # 1: a picture failed
            process.kill()
            process.join()
            raise FailedError(f"exit code {process.exitcode}: {told.read_text()[-500:]}")


class FailedError(Exception):
    """The command did not end well."""


def run(words: list[str], told: Path, last_call: int = 0) -> None:
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(told.open("w"))
        count = calls_counted(stack, last_call)
        stack.enter_context(contextlib.redirect_stdout(file))
        stack.enter_context(contextlib.redirect_stderr(file))
        code = command_line(words)
    told.with_suffix(".calls").write_text(str(next(count)))
    sys.exit(code)


def calls_counted(stack: contextlib.ExitStack, last: int) -> Iterator[int]:
    """Counts `CALLS` while the stack is open; this process is killed before the last one."""
    count = itertools.count()

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def instead(*arguments: object, **more: object) -> object:
            if next(count) + 1 == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **more)

        return instead

    for owner, name in CALLS:
        stack.enter_context(mock.patch.object(owner, name, counted(getattr(owner, name))))
    return count


# ------------------------------------------------------------------------------------------------------------- commands
def photos(folder: Path) -> Path:
    """A folder of small pictures, the demo's, and one that is none."""
    folder.mkdir()
    own = sorted(PHOTOS.glob("*.jpg"))
    for number in range(PICTURES["annotate"]):
        with Image.open(own[number % len(own)]) as opened:
            opened.convert("RGB").resize((72 + number, 64)).save(folder / f"{number:03d}.jpg")
    (folder / "zz.jpg").write_bytes(b"no picture")
    return folder


def annotate(folder: Path) -> Command:
    (folder / "names.txt").write_text("cat\ndog\nbird|wren\n")
    asked = ("annotate", photos(folder / "pictures"), "--labels", folder / "names.txt", "--format", "coco,yolo,voc,csv")
    return Command((*asked, "--masks", "--review", 20, *QUICK))


def applied(folder: Path) -> Command:
    """`--apply` with a corrected set: of each picture a box is gone, one is moved, one is new."""
    drafts, done = annotate(folder), folder / "drafts"
    drafts.end(done, folder / "told")
    document = json.loads((done / "coco.json").read_text())
    boxes: dict[int, list[dict[str, object]]] = {}
    for one in document["annotations"]:
        boxes.setdefault(one["image_id"], []).append(one)
    for image, of_image in boxes.items():
        width, height = next((one["width"], one["height"]) for one in document["images"] if one["id"] == image)
        if image % 3 == 0:
            of_image.pop()
        for one in of_image:
            one.pop("segmentation", None)
        if image % 3 == 1:
            of_image.append({**of_image[0], "bbox": [1, 1, width // 2, height // 2]})
        if image % 3 == 2:
            of_image[0]["bbox"] = [2, 3, width // 3, height // 3]
    document["annotations"] = [
        {**one, "id": number} for number, one in enumerate((b for of in boxes.values() for b in of), start=1)
    ]
    corrected = folder / "corrected.json"
    corrected.write_text(json.dumps(document))
    return Command((*drafts.words, "--apply", corrected), lambda out: shutil.copytree(done, out))


def benchmark(folder: Path) -> Command:
    root = wsol_folder(folder / "wsol", PICTURES["benchmark"])
    return Command(("benchmark", "--dataset", "wsol", "--root", root, "--save-maps", "--workers", "1", *QUICK))


SMALL = ("--template", "name-only", "--short-side", "64", "--window", "64", "--stride", "32")


def voc(folder: Path) -> Path:
    """Small pictures in VOC's layout."""
    base, names = folder / "voc/VOCdevkit/VOC2012", [f"2007_{i:03d}" for i in range(PICTURES["segmentation"])]
    for number, name in enumerate(names):
        picture(base / f"JPEGImages/{name}.jpg", (60 + number, 44))
        labelled.labels(base / f"SegmentationClass/{name}.png", [0, number % 21, 255], (60 + number, 44), palette=True)
    lines(base / "ImageSets/Segmentation/val.txt", names)
    return folder / "voc"


def segmentation(folder: Path) -> Command:
    asked = ("benchmark", "--task", "segmentation", "--dataset", "voc20", "--root", voc(folder), "--method", "cam")
    return Command((*asked, *SMALL, "--threads", "1"))


def faithfulness(folder: Path) -> Command:
    root = wsol_folder(folder / "wsol", PICTURES["faithfulness"])
    asked = ("benchmark", "--task", "faithfulness", "--dataset", "wsol", "--root", root, "--method", "cam")
    return Command((*asked, "--steps", "2", "--threads", "1"))


COMMANDS: dict[str, Callable[[Path], Command]] = {
    "annotate": annotate, "apply": applied, "benchmark": benchmark, "segmentation": segmentation,
    "faithfulness": faithfulness,
}  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- folders
VARYING = {"manifest.json": ("sessions", "token"), "summary.json": ("stamps",)}  # stamps have the times of exports
SESSIONS = re.compile(rb'<section id="manifest".*?</section>', re.DOTALL)  # of a report: the manifest again
TIME = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d")


def contents(out: Path) -> dict[str, bytes]:
    """The files of a folder, without what differs from run to run."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_symlink():
            found[name] = os.readlink(path).encode()
        elif path.is_file() and path.name != FILE:  # SQLite's pages depend on its past; rows.parquet holds the rows
            found[name] = path.read_bytes()
        if path.name in VARYING:
            document = json.loads(found[name])
            found[name] = json.dumps({k: v for k, v in document.items() if k not in VARYING[path.name]}).encode()
        if path.name == "report.html":
            found[name] = TIME.sub(b"", SESSIONS.sub(b"", found[name]))
    return found


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of files that are not the same."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def writes(out: Path) -> int:
    """A number that grows with most that is written."""
    return sum(1 for _ in out.rglob("*"))


def killed(process: BaseProcess, out: Path, seconds: float, chance: random.Random) -> bool:
    """Kills a process at a random moment; whether it was still running."""
    end, moment = time.monotonic() + PATIENCE, time.monotonic() + chance.random() * seconds
    if chance.random() < 0.5:
        left, before = chance.randint(1, 40), writes(out)
        while process.is_alive() and left and time.monotonic() < end:
            now = writes(out)
            left, before = (max(0, left - abs(now - before)), now)
            time.sleep(0.001)
        moment = time.monotonic() + chance.random() * 0.05
    process.join(max(0, moment - time.monotonic()))
    running = process.is_alive()
    process.kill()
    process.join()
    return running


# --------------------------------------------------------------------------------------------------------------- run it
def attacked(
    command: Command, kills: int, chance: random.Random, folder: Path, at_calls: bool
) -> tuple[int, int, int, list[str]]:
    """Kills, runs to the end, runs with another folder than the undisturbed, and what was wrong in them."""
    out, told = folder / "out", folder / "told"  # always the same folder, as its name is in some files
    command.fresh(out)
    start = time.monotonic()
    command.end(out, told)
    seconds, expected = time.monotonic() - start, contents(out)
    out.rename(folder / "plain")
    calls = int(told.with_suffix(".calls").read_text())
    done = runs = bad = 0
    wrong = []
    while done < kills:
        shutil.rmtree(out, ignore_errors=True)
        command.fresh(out)
        if at_calls:
            process = command.begin(out, told, 1 + done * calls // kills)
            process.join(PATIENCE)
            if process.exitcode != -signal.SIGKILL:
                raise FailedError(f"not killed at its call {1 + done * calls // kills} of {calls}: {process.exitcode}")
            done += 1
        else:
            for _ in range(chance.choice((1, 1, 2, 3))):
                done += killed(command.begin(out, told), out, seconds, chance)
        runs += 1
        try:
            command.end(out, told)
            found = differences(expected, contents(out))
        except FailedError as error:
            found = [str(error)]
        if found:
            bad += 1
            kept = Path(tempfile.mkdtemp(prefix="cliploc-kills-"))
            shutil.copytree(folder, kept / "all", symlinks=True)
            wrong.append(f"{', '.join(found[:5])} (kept in {kept})")
    return done, runs, bad, wrong


def main() -> int:
    """Kills, and says what was found."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    options.add_argument("--kills", type=int, default=60, help="of each command")
    options.add_argument("--what", default=",".join(COMMANDS), help=f"of {', '.join(COMMANDS)}; all by default")
    options.add_argument("--at-calls", action="store_true", help="at chosen system calls, not at random moments")
    options.add_argument("--seed", type=int, default=int(time.time()), help="printed, to repeat a run")
    given = options.parse_args()
    chosen = given.what.split(",")
    if unknown := set(chosen) - COMMANDS.keys():
        options.error(f"no command {', '.join(sorted(unknown))}")
    print(f"seed {given.seed}", flush=True)
    total = 0
    for name in chosen:
        with tempfile.TemporaryDirectory() as made:
            (folder := Path(made, name)).mkdir()
            chance, command = random.Random(given.seed), COMMANDS[name](folder)
            done, runs, bad, wrong = attacked(command, given.kills, chance, folder, given.at_calls)
        total += bad
        print(f"{name}: {done} kills, {runs} runs to the end, {runs - bad} the same, {bad} not", flush=True)
        for one in wrong:
            print(f"  {one}")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
