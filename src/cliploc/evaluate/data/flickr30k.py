"""Flickr30k Entities (Plummer et al. 2015): a sample for each phrase of each sentence that has a box.

Pixels are counted from 1 in the XML, as in VOC, and the last one is included: xmin … xmax are the edges xmin − 1 …
xmax. A phrase may have several boxes; one of them is enough (the "any" protocol). Phrases of the whole scene, and of
what cannot be seen, have no box and are left out, as in the authors' evaluation. Every phrase is a class.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from cliploc.evaluate.data import _base as base
from cliploc.formats import Box, voc
from cliploc.support.files import read_text

PHRASE = re.compile(r"\[/EN#(\S+?)/\S+ ([^\]]*)\]")  # [/EN#283585/people A girl]


@base.reader(
    "flickr30k",
    title="Flickr30k Entities",
    about="31,783 pictures with five sentences each, whose phrases have boxes",
    source="sentences and boxes: github.com/BryanPlummer/flickr30k_entities; pictures: "
    "shannon.cs.illinois.edu/DenotationGraph (ask by their form)",
    splits=(
        base.Split("test", "report", "1,000 pictures"),
        base.Split("val", "tune", "1,000 pictures"),
        base.Split("train", "tune", "29,783 pictures"),
    ),
    layout="""
test.txt                    one picture's number per line
Sentences/36979.txt         one sentence per line: [/EN#40120/people Two men] …
Annotations/36979.xml       the size, and one object per box
                            (both folders: as annotations.zip holds them)
flickr30k-images/36979.jpg  the pictures (also: flickr30k_images/, images/)
""",
)
def read(root: Path, split: str, problems: base.Problems) -> base.Annotations:
    """Reads a split. Sample ids are picture, sentence and place of the phrase in it: 36979/0/1."""
    numbers = [row[0] for row in base.words(root / f"{split}.txt", 1)]
    sentences, boxes_in = (base.needed_folder(root, (name,), "text files") for name in ("Sentences", "Annotations"))
    pictures = base.needed_folder(root, ("flickr30k-images", "flickr30k_images", "images"), "pictures")
    rows: list[base.PhraseRow] = []
    for number in numbers:
        try:
            annotated = voc.read_picture(boxes_in / f"{number}.xml")
            if (size := annotated.size_wh) is None:
                raise ValueError("no size")
            boxes: dict[str, list[Box]] = {}
            for thing in annotated.objects:
                if thing.edges is not None:
                    for entity in thing.names:  # one box may be of several phrases
                        boxes.setdefault(entity, []).append(thing.xyxy)
            for place, entity, phrase in _phrases(sentences / f"{number}.txt"):
                if phrase and entity in boxes:
                    rows.append((f"{number}/{place}", phrase, pictures / f"{number}.jpg", boxes[entity], size))
        except (OSError, ValueError) as error:
            problems.add("broken annotation", number, f"its sentences or boxes cannot be read ({error}): left out")
    return base.found_phrases(rows)


def _phrases(path: Path) -> Iterator[tuple[str, str, str]]:
    """Sentence and place, entity, and words of each phrase."""
    for i, line in enumerate(line for line in read_text(path).splitlines() if line.strip()):
        for j, (entity, phrase) in enumerate(PHRASE.findall(line)):
            yield f"{i}/{j}", entity, base.plain_phrase(phrase)
