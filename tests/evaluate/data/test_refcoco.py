"""RefCOCO's three sets: phrases, splits, and a pickle that is not read."""

import json
import pickle
from pathlib import Path

import pytest

from cliploc.errors import UsageError
from cliploc.evaluate.data import open_dataset
from cliploc.find import prompts
from tests.evaluate.data.folders import boxes, instances, named, picture

NAME, OTHER = "COCO_train2014_000000000009.jpg", "COCO_train2014_000000000005.jpg"
INSTANCES = instances(
    {9: NAME, 5: OTHER},
    {1: "person"},
    [(31, 9, 1, [5, 6, 20, 30], 0), (32, 9, 1, [30, 0, 20, 40], 0), (33, 5, 1, [0, 10, 40, 40], 0)],
)
INSTANCES["images"][1] |= {"width": 40, "height": 50}
REFS = [
    {
        "ref_id": ref, "ann_id": annotation, "image_id": image, "category_id": 1, "split": split,
        "sentences": [{"sent": sent, "sent_id": i, "raw": sent} for i, sent in enumerate(phrases)],
    }
    for ref, annotation, image, split, phrases in (
        (0, 31, 9, "val", ["left guy", "man | in ~ red"]),
        (1, 32, 9, "val", ["right guy"]),
        (2, 32, 9, "testA", ["left guy"]),
        (3, 33, 5, "val", ["a cup"]),
    )
]  # fmt: skip


def build(root: Path, by: str = "unc", pictures: str = "train2014") -> Path:
    """Two pictures; of one, three phrases in val and one in testA."""
    (root / "instances.json").write_text(json.dumps(INSTANCES))
    (root / f"refs({by}).json").write_text(json.dumps(REFS))
    picture(root / pictures / NAME)
    picture(root / pictures / OTHER, (40, 50))
    return root


@pytest.mark.parametrize("by", ["unc", "umd"])
def test_each_phrase_is_a_sample_with_one_box(by, tmp_path):
    dataset = open_dataset("refcoco", build(tmp_path, by, "images/mscoco/images/train2014"))
    stem = NAME.removesuffix(".jpg")
    assert boxes(dataset) == {
        f"{stem}/0/0": [[5, 6, 25, 36]],
        f"{stem}/0/1": [[5, 6, 25, 36]],
        f"{stem}/1/0": [[30, 0, 50, 40]],
        f"{OTHER.removesuffix('.jpg')}/3/0": [[0, 10, 40, 50]],
    }
    phrases = ["a cup", "left guy", "man in red", "right guy"]  # picture by picture
    assert [dataset.classes[one.label].name for one in dataset.samples] == phrases
    assert prompts.parse([one.name for one in dataset.classes]).names == tuple(phrases)
    assert len(open_dataset("refcoco", tmp_path, "testA")) == 1
    with pytest.raises(UsageError, match=r"split testB .* it has testA, val$"):
        open_dataset("refcoco", tmp_path, "testB")


def test_a_pickle_is_never_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    root = build(tmp_path)
    (root / "refs(unc).json").unlink()
    (root / "refs(unc).p").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UsageError, match=r"^expected .*refs\(unc\).json, found no .* a pickle can run code[^\n]*$"):
        open_dataset("refcoco", root)
    assert not (tmp_path / "sprung").exists()


def test_a_ref_without_its_annotation_is_named(tmp_path):
    root = build(tmp_path)
    refs = [{**REFS[0], "ann_id": 99}, *REFS[1:]]
    (root / "refs(unc).json").write_text(json.dumps(refs))
    assert named("refcoco", root) == [("metadata", "ref 0")]


def test_what_cannot_be_read_is_one_line(tmp_path):
    root = build(tmp_path)
    (root / "refs(unc).json").write_text('[{"split": "val"}]')
    with pytest.raises(UsageError, match=r"refs\(unc\)\.json[^\n]*: convert it again$"):
        open_dataset("refcoco", root)
