"""ImageNet's names, template sets, and both out of files."""

import csv
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest

from cliploc import Localizer
from cliploc.errors import UsageError
from cliploc.find import prompts
from tests.tiny import tower

ILSVRC = Path(__file__).parents[3] / "shared" / "data" / "ilsvrc_val_dev" / "synsets.csv"


def test_imagenet_classes():
    classes = prompts.imagenet_classes()
    by_wnid = {one.wnid: one for one in classes}
    assert len(classes) == len(by_wnid) == len({one.name for one in classes}) == 1000
    assert [one.wnid for one in classes] == sorted(by_wnid), "ImageNet's labels are in the order of their WordNet ids"
    assert classes[0].entry == "tench|Tinca tinca"
    assert by_wnid["n02012849"].name == "crane bird"
    assert by_wnid["n03126707"].name == "construction crane"
    assert by_wnid["n03773504"].name == "missile"
    assert by_wnid["n04008634"].entry == "projectile|missile"
    assert (by_wnid["n04355933"].name, by_wnid["n04356056"].name) == ("sunglass", "sunglasses")
    others = [one.name for one in classes if one.wnid not in ("n04008634", "n04355933")]
    assert others == [name for i, name in enumerate(open_clip.IMAGENET_CLASSNAMES) if i not in (744, 836)]
    assert len(prompts.parse([one.entry for one in classes])) == 1000


@pytest.mark.skipif(not ILSVRC.is_file(), reason="needs ../shared/data/ilsvrc_val_dev")
def test_imagenet_words_are_those_of_the_data_set():
    with ILSVRC.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, one in zip(rows, prompts.imagenet_classes(), strict=True):
        assert row["wnid"] == one.wnid
        words = {one.name.casefold(), *row["synset_words"].casefold().split(", ")}
        assert sorted(words) == sorted(word.casefold() for word in (one.name, *one.synonyms))


def test_template_sets_are_openais():
    for name, theirs in (
        ("openai-80", open_clip.OPENAI_IMAGENET_TEMPLATES),
        ("openai-7", open_clip.SIMPLE_IMAGENET_TEMPLATES),
    ):
        ours = prompts.resolve_templates(name)
        assert [template.format("cat") for template in ours] == [template("cat") for template in theirs]


def test_class_file(tmp_path):
    path = tmp_path / "names.txt"
    lines = [
        "\ufeff# mine",
        "cat|kitten",
        "",
        "  remote   control \r",
        "n01440764",
        "n02119789 kit fox, Vulpes macrotis",
        "n2",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    entries = ("cat|kitten", "remote control", "tench|Tinca tinca", "kit fox|Vulpes macrotis", "n2")
    assert prompts.read_labels(path).entries == entries


def test_template_file(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("# mine\nan image of a {}.\n\na clean origami {}.\n")
    expected = ("an image of a {}.", "a clean origami {}.")
    assert prompts.read_templates(path) == expected
    assert prompts.resolve_templates(str(path)) == expected
    assert Localizer(model=tower("gap_cnn"), templates=str(path)).templates == expected


@pytest.mark.parametrize("read", [prompts.read_labels, prompts.read_templates])
def test_files_that_cannot_be_read(tmp_path, read):
    (tmp_path / "latin.txt").write_bytes("café {}\n".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    for path in (tmp_path / "none.txt", tmp_path, "a\0b", tmp_path / "latin.txt", tmp_path / "empty.txt"):
        with pytest.raises(UsageError, match=rf"^expected [^\n]*{re.escape(str(path))}[^\n]*: [^\n]+$"):
            read(path)


def test_lines_that_cannot_be_used(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("cat\nn99999999\n")
    with pytest.raises(UsageError, match=r"file\.txt: n99999999 is not one of ImageNet's 1,000 classes"):
        prompts.read_labels(path)
    path.write_text("a {}\n\na photo\n")
    with pytest.raises(UsageError, match=r"file\.txt, line 3: expected a template with one \{\} for the name"):
        prompts.read_templates(path)


def test_classify(photo):
    """Against the softmax written out; a picture and a list of pictures alike."""
    backbone = tower("attention_pool_cnn")
    localizer = Localizer(model=backbone, templates=["{}", "a {}."])
    mirrored = photo.transpose(method=0)
    names = ["red|blue", "green", "a boat"]
    both = localizer.classify([photo, mirrored], names, top_k=3)
    located = localizer([photo, mirrored], names)
    for one, found in zip(both, located, strict=True):
        order = np.argsort(-found.scores)
        odds = np.exp(backbone.logit_scale * found.scores.astype(np.float64))
        assert [entry.name for entry in one] == [found.names[i] for i in order]
        assert [entry.cosine for entry in one] == pytest.approx(found.scores[order], abs=1e-6)
        assert [entry.probability for entry in one] == pytest.approx((odds / odds.sum())[order], rel=1e-4)
    assert [one.name for one in localizer.classify(photo, names, top_k=2)] == [one.name for one in both[0][:2]]
    assert len(localizer.classify(photo, names, top_k=9)) == 3
