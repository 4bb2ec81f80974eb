"""What a person has reviewed, as pictures with true boxes."""

from pathlib import Path

import numpy as np

from cliploc.errors import UsageError
from cliploc.find import prompts
from cliploc.label.results import AnnotatedFolder
from cliploc.runs.label_store import LabellingRun
from cliploc.runs.picture_files import PictureFile, content_digest
from cliploc.runs.samples import PromptedDataset, PromptedPicture
from cliploc.values import ClassName, Problem


def reviewed_pictures(out: Path) -> PromptedDataset:
    """The pictures of an annotation that a person has reviewed, each asked for all labels of the run."""
    pictures, problems = [], []
    with LabellingRun.open(out) as run:
        folder = AnnotatedFolder(run)
        folder.show([PictureFile(name, folder.root / name) for name in folder.pictures])
        finished, texts = folder.finished(), prompts.parse(folder.labels)
    for file in folder.annotated():
        if file.id not in finished:
            continue
        if content_digest(file) != folder.pictures[file.id].checksum:
            problems.append(Problem("missing picture", file.id, "moved, or replaced since it was annotated: left out"))
            continue
        correction, names = finished[file.id], tuple(range(len(texts)))
        boxes = {label: np.array(correction.boxes_of(label), np.float32) for label in sorted({*correction.labels})}
        pictures.append(PromptedPicture(file.id, file.path, folder.pictures[file.id].size_wh, names, boxes))
    if not pictures:
        raise UsageError(f"expected reviewed pictures in {out}, found none: review some with cliploc review {out}")
    classes = tuple(ClassName(words[0], words) for words in texts.synonyms)
    return PromptedDataset("reviewed", out, "reviewed", "tune", classes, tuple(pictures), tuple(problems))
