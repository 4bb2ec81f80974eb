"""RefCOCO, RefCOCO+ (Yu et al. 2016) and RefCOCOg (Mao et al. 2016): a phrase for one thing; a sample for each phrase.

Read from refer's layout. Its refs(unc).p is a pickle, which can run any code when it is read: convert it once, on a
machine that you trust with it, to JSON.

A bbox is that of COCO: x, y, width, height from 0. Every phrase is a class, so a prediction means nothing here; what
counts is the box of the phrase that the picture was asked for.
"""

from pathlib import Path

import msgspec

from cliploc.errors import UsageError
from cliploc.evaluate.data import _base as base
from cliploc.support.files import read_json

BY = ("unc", "umd", "google")  # who split them: refs(unc).p of RefCOCO and RefCOCO+, refs(umd).p of RefCOCOg
PICTURES = ("train2014", "images/mscoco/images/train2014", "../images/mscoco/images/train2014", "../train2014")
CONVERT = (
    'a pickle can run code, so cliploc reads its JSON: python -c "import json, pickle; '
    "json.dump(pickle.load(open('refs(unc).p', 'rb')), open('refs(unc).json', 'w'))\""
)


class Sentence(msgspec.Struct):
    """A phrase for a thing."""

    sent: str


class Ref(msgspec.Struct):
    """A thing and its phrases."""

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: list[Sentence]


@base.reader(
    "refcoco",
    title="RefCOCO, RefCOCO+ or RefCOCOg",
    about="phrases that mean one thing in a picture of COCO; which of the three, the folder says",
    source="github.com/lichengunc/refer (refcoco.zip, refcoco+.zip, refcocog.zip); COCO's 2014 train images",
    splits=(
        base.Split("val", "report", "1,500 pictures (RefCOCOg: 1,300)"),
        base.Split("testA", "report", "750 pictures with several people (not RefCOCOg)"),
        base.Split("testB", "report", "750 pictures with several other things (not RefCOCOg)"),
        base.Split("test", "report", "2,600 pictures (RefCOCOg only)"),
        base.Split("train", "tune", "about 17,000 pictures"),
    ),
    layout="""
instances.json     as in refer's folder refcoco, refcoco+ or refcocog
refs(unc).json     the list in refs(unc).p, as JSON (RefCOCOg: refs(umd).json):
                   convert the pickle yourself, as it can run code
train2014/*.jpg    COCO's pictures (or images/mscoco/images/train2014, here or
                   beside this folder)
""",
)
def read(root: Path, split: str, problems: base.Problems) -> base.Annotations:
    """Reads a split. Sample ids are picture, ref and sentence: COCO_train2014_000000581857/0/2."""
    path = next((root / f"refs({by}).json" for by in BY if (root / f"refs({by}).json").is_file()), None)
    if path is None:
        raise UsageError(f"expected {root / 'refs(unc).json'}, found no such file: {CONVERT}")
    with base.reading(path):
        try:
            refs = msgspec.convert(read_json(path), list[Ref], strict=False)
        except ValueError as error:
            raise UsageError(f"{path} is not refer's list ({error}): convert it again") from None
    document = base.coco_document(root / "instances.json")
    pictures = base.needed_folder(root, PICTURES, "pictures").resolve()
    images = {image.id: image for image in document.images}
    things = {thing.id: thing for thing in document.annotations}
    rows: list[base.PhraseRow] = []
    for ref in sorted((ref for ref in refs if ref.split == split), key=lambda ref: ref.image_id):
        image, thing = images.get(ref.image_id), things.get(ref.ann_id)
        if image is None or thing is None or not thing.bbox or image.size_wh is None:
            problems.add("metadata", f"ref {ref.ref_id}", "its image or box is not in instances.json: left out")
            continue
        for place, sentence in enumerate(ref.sentences):
            name = f"{Path(image.file_name).stem}/{ref.ref_id}/{place}"
            if phrase := base.plain_phrase(sentence.sent):
                rows.append((name, phrase, pictures / image.file_name, [thing.xyxy], image.size_wh))
            else:
                problems.add("empty annotation", name, "a phrase without a word: left out")
    if not rows:
        splits = ", ".join(sorted({ref.split for ref in refs})) or "none"
        raise UsageError(f"expected refs of the split {split} in {path}, found none: it has {splits}")
    return base.found_phrases(rows)
