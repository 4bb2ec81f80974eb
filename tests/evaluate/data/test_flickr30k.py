"""Flickr30k Entities: phrases with one box or several, and those without."""

from pathlib import Path

import pytest

from cliploc.evaluate.data import open_dataset
from tests.evaluate.data.folders import boxes, lines, named, picture

SENTENCES = [
    "[/EN#40120/people Two friendly men] stand in [/EN#40121/scene a field] .",
    "[/EN#40122/people/bodyparts A man 's hand] holds [/EN#0/notvisual something] [/EN#40122/people |] .",
]
BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
XML = (
    "<annotation><filename>36979.jpg</filename><size><width>50</width><height>40</height><depth>3</depth></size>"
    f"<object><name>40120</name><name>40122</name>{BOX.format(1, 1, 20, 40)}</object>"
    f"<object><name>40120</name>{BOX.format(31, 5, 50, 40)}</object>"
    "<object><name>40121</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"
)


def build(root: Path) -> Path:
    """A picture with two sentences; one phrase has two boxes, one the whole scene, one nothing that can be seen."""
    lines(root / "test.txt", ["36979"])
    lines(root / "Sentences/36979.txt", SENTENCES)
    lines(root / "Annotations/36979.xml", [XML])
    picture(root / "flickr30k-images/36979.jpg")
    return root


def test_phrases_with_boxes_are_samples(tmp_path):
    dataset = open_dataset("flickr30k", build(tmp_path))
    assert boxes(dataset) == {"36979/0/0": [[0, 0, 20, 40], [30, 4, 50, 40]], "36979/1/0": [[0, 0, 20, 40]]}
    assert [dataset.classes[one.label].name for one in dataset.samples] == ["Two friendly men", "A man 's hand"]


@pytest.mark.parametrize("text", ["<annotation></annotation>", "no XML", XML.replace(">20<", ">wide<")])
def test_a_broken_annotation_is_named_and_the_others_stay(text, tmp_path):
    root = build(tmp_path)
    lines(root / "test.txt", ["36979", "7"])
    for place in ("Sentences/{}.txt", "Annotations/{}.xml", "flickr30k-images/{}.jpg"):
        (root / place.format(7)).write_bytes((root / place.format(36979)).read_bytes())
    lines(root / "Annotations/7.xml", [text])
    assert named("flickr30k", root) == [("broken annotation", "7")]
