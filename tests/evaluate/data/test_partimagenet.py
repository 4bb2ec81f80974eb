"""PartImageNet: parts as classes, and the places that its files may have."""

import json
from pathlib import Path

import pytest

from cliploc.evaluate.data import open_dataset
from tests.evaluate.data.folders import boxes, instances, picture

DOCUMENT = instances(
    {0: "n01440764_10043.JPEG"},
    {9: "Fish Head", 11: "Fish Fin"},
    [(1, 0, 9, [1, 2, 10, 20], 0), (2, 0, 11, [20, 0, 10, 10], 0), (3, 0, 11, [30, 20, 10, 10], 0)],
)


def build(root: Path, place: str = "annotations/test", pictures: str = "images/test") -> Path:
    """A fish with a head and two fins."""
    (root / place).mkdir(parents=True, exist_ok=True)
    (root / place / "test.json").write_text(json.dumps(DOCUMENT))
    picture(root / pictures / "n01440764_10043.JPEG")
    return root


@pytest.mark.parametrize("places", [("annotations/test", "images/test"), ("annotations", "images/test"), ("", "test")])
def test_parts_and_places(places, tmp_path):
    dataset = open_dataset("partimagenet", build(tmp_path, *places))
    assert [one.name for one in dataset.classes] == ["fish head", "fish fin"]
    assert boxes(dataset) == {
        "n01440764_10043/9": [[1, 2, 11, 22]],
        "n01440764_10043/11": [[20, 0, 30, 10], [30, 20, 40, 30]],
    }
