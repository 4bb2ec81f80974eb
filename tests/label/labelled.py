"""What people corrected in a labelling run, as tests read and write it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from cliploc.label.corrections import ReviewedPicture, review_of
from cliploc.label.results import AnnotatedFolder
from cliploc.runs.label_store import Correction, LabellingRun
from cliploc.runs.picture_files import PictureFile


def corrections(out: Path) -> dict:
    """The corrected boxes by picture, and status and revision of each picture that was saved."""
    with LabellingRun.open(out) as run:
        every = {name: run.saved(picture) for name, picture in run.pictures().items()}
    pictures = {}
    for name, saved in every.items():
        if (held := saved.correction) is not None:
            masks = {} if held.masks is None else {"masks": held.masks}
            pictures[name] = {"boxes": held.boxes, "labels": held.labels, "drafts": held.drafts, **masks}
    reviews = {name: {"status": one.status, "revision": one.revision} for name, one in every.items() if one.revision}
    return {"pictures": pictures, "reviews": reviews}


def correct(out: Path, corrected: Mapping[str, Correction | None], status: str = "reviewed") -> None:
    """Saves boxes of pictures; None: the drafts hold."""
    with LabellingRun.open(out) as run, run.store.transaction():
        pictures = run.pictures()
        for name, correction in corrected.items():
            run.save(pictures[name], status, correction)


def save_boxes(out: Path, boxes: Mapping[str, object], status: str = "reviewed") -> None:
    """Saves boxes of pictures as the editor does."""
    with LabellingRun.open(out) as run:
        folder = AnnotatedFolder(run)
        folder.show([PictureFile(name, folder.root / name) for name in folder.pictures])
        for name, own in boxes.items():
            page = msgspec.convert({"revision": 0, "status": status, "boxes": own}, ReviewedPicture)
            run.save(folder.pictures[name], status, review_of(folder, name, page))


def forget(out: Path, pictures: Iterable[str]) -> None:
    """Takes back what was saved of pictures."""
    correct(out, dict.fromkeys(pictures), "none")


def held(out: Path) -> dict:
    """What a run holds of each picture, without numbers and times of the machine."""
    columns = 'b.generation, number, label, "left", top, "right", bottom, score, fit, draft, mask'
    with LabellingRun.open(out) as run:
        rows = run.store.rows(
            "SELECT name, checksum, width, height, error, notes, presence, status, corrected, p.generation, content "
            "FROM picture p LEFT JOIN features f ON f.picture = p.id"
        )
        boxes = run.store.rows(f"SELECT name, {columns} FROM box b JOIN picture p ON p.id = b.picture ORDER BY 1, 2, 3")
        return {"pictures": sorted(rows), "boxes": boxes, "taught": run.taught_by, "learnt": run.learnt()}


def taught(out: Path) -> tuple:
    """What teaching found: of each name what became of it, the boxes of now, and what was learnt."""
    columns = 'label, "left", top, "right", bottom, score, mask, t.presence'
    with LabellingRun.open(out) as run:
        boxes = run.store.rows(
            f"SELECT name, number, {columns} FROM picture p JOIN taught t ON t.picture = p.id "
            "AND t.generation = p.generation LEFT JOIN box b ON b.picture = p.id AND b.generation = p.generation "
            "ORDER BY name, number"
        )
        return [made.names for made in run.taught_by[-1:]], boxes, run.learnt()
