"""What the gate of teaching sees: do two halves of the pictures with a name teach the same?

    python tools/teaching_study.py RUN [TRUTH]
    python tools/teaching_study.py --looks RUN OTHERS
    python tools/teaching_study.py --times RUN

RUN is the folder of a finished `cliploc annotate`. With TRUTH (COCO's annotations of its pictures) each name is also
looked at in the folder of only those pictures that show it, as somebody would label them. With --looks all pictures of
RUN show a name and those of OTHERS do not: one half of RUN says in which pictures of the other half, and of OTHERS, the
name is found by their looks. With --times RUN is taught once more, in one thread, and the processor time is printed.
The constants of `cliploc.jobs.teach` were chosen by this table and by `cliploc benchmark --task labelling`, on the
raccoon pictures and on coco_tune.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from cliploc.config import FOUND
from cliploc.jobs.annotation_results import AnnotatedFolder
from cliploc.jobs.annotation_rows import KIND
from cliploc.jobs.drafts import choose
from cliploc.jobs.folder import read_manifest
from cliploc.jobs.lessons import Lessons
from cliploc.jobs.picture_files import PictureFile
from cliploc.jobs.teach import LEFT_BEHIND, Appearance, School
from cliploc.teaching.directions import GROUP, Pictures, Whitening, stability
from cliploc.teaching.lesson import pooled

FEWEST = GROUP // 2  # pictures from which a line is printed


def main(run: Path, truth: Path | None = None) -> None:
    """Prints a line for each name."""
    folder = opened(run)
    lessons = lessons_of(folder)
    print("name                  pictures  chance   two halves")
    every = folder.found
    if truth is None:
        for p, name in enumerate(folder.names):
            line(folder, lessons, p, name, every)
        return
    shown = shown_in(truth)
    for p, name in enumerate(folder.names):
        own = [one for one in every if one.path.name in shown[name]]
        if len(own) >= FEWEST:
            folder.show(own)
            line(folder, lessons, p, name, own)


def looks(run: Path, others: Path) -> None:
    """Prints a line for each half of a run."""
    own, without = (
        F.normalize(torch.stack([lessons_of(folder).of(each.id).embedding.float() for each in folder.found]), dim=1)
        for folder in (opened(run), opened(others))
    )
    for half in (0, 1):
        seen = Appearance.of(own[half::2], own[:0])
        low = seen.own.quantile(LEFT_BEHIND)
        found, wrong = ((some @ seen.mean >= low).float().mean() for some in (own[1 - half :: 2], without))
        most = (without @ seen.mean).quantile(0.99)
        print(f"found in {found:.2f} of the other half and {wrong:.3f} of others; 99 % of these below {most:.2f}")


def times(run: Path) -> None:
    """Prints the time of teaching a run's names, and of drawing its pictures again."""
    torch.set_num_threads(1)
    school = School(opened(run))
    begun = time.process_time()
    _, known = school.names()
    fitted = time.process_time()
    count = sum(1 for _ in school.rows(known, {}))
    each = 1000 * (time.process_time() - fitted) / max(1, count)
    print(f"fitted in {fitted - begun:.1f} s, {count:,} pictures drawn in {each:.1f} ms each")


def opened(run: Path) -> AnnotatedFolder:
    """The run with the pictures that it annotated."""
    found = AnnotatedFolder(run, read_manifest(run, KIND))
    found.show([PictureFile(name, found.root / name) for name, place in found.results.places.items() if place.ok])
    return found


def lessons_of(folder: AnnotatedFolder) -> Lessons:
    """Those of its pictures."""
    return Lessons(folder.out, {one.id: folder.results.places[one.id].content for one in folder.found})


def line(folder: AnnotatedFolder, lessons: Lessons, p: int, name: str, pictures: Sequence[PictureFile]) -> None:
    """One name: the pictures that seem to show it, its share of them, and how far halves of these agree."""
    chances = {
        one.id: choose(folder.results.row(one.id, taught=False), folder.rule, folder.prior).presence[p]
        for one in pictures
    }
    with_name = [one for one, chance in chances.items() if chance >= FOUND and p in lessons.of(one).names]
    if len(with_name) < FEWEST:
        return
    kept = [lessons.of(one) for one in with_name]
    own = Pictures.of(kept, Whitening.of(kept))
    heat = torch.stack([pooled(one.heat[one.names.index(p)].float(), own.grid).flatten() for one in kept])
    found = stability(own, heat, torch.ones(len(kept), dtype=torch.bool))
    print(
        f"{name:20s} {len(with_name):5d}/{len(pictures):<5d} {folder.shares().get(name, math.nan):6.2f} {found:10.2f}"
    )


def shown_in(truth: Path) -> dict[str, set[str]]:
    """Name → names of the files that show it, of COCO's annotations."""
    read = json.loads(truth.read_text())
    names = {one["id"]: one["name"] for one in read["categories"]}
    files = {one["id"]: one["file_name"] for one in read["images"]}
    found: dict[str, set[str]] = defaultdict(set)
    for one in read["annotations"]:
        found[names[one["category_id"]]].add(files[one["image_id"]])
    return found


if __name__ == "__main__":
    kinds: dict[str, Callable[..., None]] = {"--looks": looks, "--times": times}
    kind = kinds.get("".join(sys.argv[1:2]))
    if sys.argv[1:] in ([], ["--help"]):
        print(__doc__)
    elif kind is None:
        main(*map(Path, sys.argv[1:]))
    else:
        kind(*map(Path, sys.argv[2:]))
