"""Names and templates, typed and out of files → sentences → one embedding for each name; how names are read."""

import csv
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from cliploc.boxes import BoxRule
from cliploc.cli import main
from cliploc.errors import UsageError
from cliploc.find import prompts
from cliploc.find import texts as texts_module
from cliploc.find.calibration import OF_BOX
from cliploc.find.memory import Memory
from cliploc.find.presence import Bank
from cliploc.find.prompts import parse
from cliploc.find.segmentation.protocol import protocol_for
from cliploc.find.texts import REMARKS, Texts
from cliploc.images.exemplars import Exemplar, split_entries
from cliploc.localizer import Localizer
from cliploc.methods.cam import cam
from cliploc.towers import create
from cliploc.values import Boxes, TextSet
from tests.commands import create_once
from tests.test_localizer import TERMS, build, photo
from tests.tiny import KINDS, give_function, tower
from tests.tolerances import assert_rounded


def encode(sentences):
    """A sentence's own direction; not unit norm, so that an average without normalising first would differ."""
    rows = []
    for sentence in sentences:
        generator = torch.Generator().manual_seed(zlib.crc32(sentence.encode()))
        rows.append(torch.randn(7, generator=generator) * (1 + len(sentence)))
    return torch.stack(rows)


def test_each_is_normalised_then_averaged_then_normalised():
    texts = prompts.parse(["cat|kitten|tabby cat", "dog"], ["a {}.", "two {}s!"])
    sentences = {
        "cat": ["a cat.", "two cats!", "a kitten.", "two kittens!", "a tabby cat.", "two tabby cats!"],
        "dog": ["a dog.", "two dogs!"],
    }
    expected = []
    for name in ("cat", "dog"):
        each = [encode([sentence])[0] for sentence in sentences[name]]
        mean = sum(vector / vector.norm() for vector in each) / len(each)
        expected.append(mean / mean.norm())
    torch.testing.assert_close(texts_module.embed(texts, encode), torch.stack(expected))


@pytest.mark.parametrize(
    ("names", "templates", "sentences"),
    [
        (["cat|kitten", "dog"], ["a {}.", "{}"], ["a cat.", "cat", "a kitten.", "kitten", "a dog.", "dog"]),
        (["{}", "{0}"], "a {}.", ["a {}.", "a {0}."]),  # names with braces are put in once
    ],
)
def test_all_sentences_reach_the_encoder_in_one_call(names, templates, sentences):
    calls = []
    texts_module.embed(prompts.parse(names, templates), lambda given: calls.append(list(given)) or encode(given))
    assert calls == [sentences]


@pytest.mark.parametrize(
    ("typed", "name", "words", "contrast"),
    [
        ("cat", "cat", ("cat",), ()),
        ("  black \t cat ", "black cat", ("black cat",), ()),
        ("cat | kitten|tabby  cat", "cat", ("cat", "kitten", "tabby cat"), ()),
        ("猫|🐈", "猫", ("猫", "🐈"), ()),
        ("x" * 300, "x" * 300, ("x" * 300,), ()),
        ("helmet~bare head", "helmet~bare head", ("helmet",), ("bare head",)),
        (" helmet | hard  hat ~ hair|bare head", "helmet~hair", ("helmet", "hard hat"), ("hair", "bare head")),
    ],
)
def test_what_is_typed(typed, name, words, contrast):
    texts = prompts.parse([typed, "helmet"])
    assert texts == TextSet((name, "helmet"), (words, ("helmet",)), prompts.DEFAULT_TEMPLATES, (contrast, ()))
    assert len(texts) == 2


@pytest.mark.parametrize(
    "names", [[], [""], ["x" * 10_000], ["cat", "cat"], "cat", ["cat", None], ["cat~"], ["a~b~c"], ["cat|dog~wolf|dog"]]
)
def test_names_that_are_refused(names):
    with pytest.raises(UsageError, match=r"^expected [^\n]+ got [^\n]+: [^\n]+$"):
        prompts.parse(names)


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        (None, ("a photo of a {}.",)), ("default", ("a photo of a {}.",)), ("name-only", ("{}",)),
        ("a sketch of {}", ("a sketch of {}",)), (["{} here", "my {}"], ("{} here", "my {}")),
    ],
)  # fmt: skip
def test_what_templates_mean(templates, expected):
    assert prompts.resolve_templates(templates) == expected


@pytest.mark.parametrize("templates", [[], "openai-8", ["a {}", "a photo"], ["a {}", 7]])
def test_templates_that_are_refused(templates):
    with pytest.raises(UsageError, match=r"^expected [^\n]*template[^\n]* got [^\n]+$"):
        prompts.parse(["cat"], templates)


# ---------------------------------------------------------------------------------------- ImageNet's names, sets, files
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
    first, last = "\ufeff# mine\ncat|kitten\n\n  remote   control \r\n", "n02119789 kit fox, Vulpes macrotis\nn2"
    path.write_text(f"{first}n01440764\n{last}", encoding="utf-8")
    entries = ("cat|kitten", "remote control", "tench|Tinca tinca", "kit fox|Vulpes macrotis", "n2")
    assert prompts.read_labels(path).entries == entries


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


# --------------------------------------------------------------------------------------------------- how names are read
ROOT = Path(__file__).parents[2]
CAT = str(ROOT / "src/cliploc/demo_photos/cat.jpg")
WIFE = "mini reads 'my wife' as 'woman'"


@pytest.fixture(scope="module")
def texts() -> Texts:
    return Texts(create("mini"), prompts.DEFAULT_TEMPLATES)


def test_a_result_has_it_as_a_note() -> None:
    localizer = Localizer("mini", method="cam")
    picture = np.zeros((32, 32, 3), np.uint8)
    assert localizer(picture, ["my wife", "cat"]).notes == (WIFE,)
    assert localizer(picture, ["cat"]).notes == ()
    assert localizer.readings(["cat", "my wife"]) == (WIFE,)


@pytest.mark.parametrize("how", [{"method": "cam"}, {"recipe": "fast"}])
def test_the_presence_of_a_name_that_the_model_does_not_know_is_not_known(how: dict[str, str]) -> None:
    found = Localizer("mini", **how)(CAT, ["happiness", "cat"])
    for result in (found, found.by(found.box_rule, 0.5)):
        assert result.presence is not None
        assert np.isnan(result.presence).tolist() == [True, False]


@pytest.mark.parametrize("names", [["tabby", "tabbies", "the tabby"], ["dog", "dogs"], ["kite", "kites"]])
def test_names_that_are_read_alike_have_the_same_chances(names: list[str]) -> None:
    """Of the bank, "Brittany dog" is read as "dog", too, and two entries are a "kite"."""
    found = Localizer("mini", recipe="fast", min_presence=0)(CAT, names)
    assert found.presence is not None
    np.testing.assert_allclose(found.presence, found.presence[0], rtol=1e-4)
    scores = found.boxes.score.reshape(len(names), -1)
    np.testing.assert_allclose(scores, scores[:1].repeat(len(names), 0), rtol=1e-4)


def test_synonyms_and_contrasts_are_told_of_too(texts: Texts) -> None:
    assert texts.readings(prompts.parse(["cat|my wife"])) == (WIFE,)
    assert texts.readings(prompts.parse(["cat~my wife"])) == (WIFE,)
    (lost,) = texts.readings(prompts.parse(["cat|happiness"]))
    assert lost.startswith("mini does not know 'happiness'")
    assert texts.readings(prompts.parse(["happiness"])) == ()  # the reason why it is not found says it


def test_many_are_counted(texts: Texts) -> None:
    said = texts.readings(prompts.parse([f"my {name}" for name in ("cat", "dog", "bird", "cup", "car", "bed", "tv")]))
    assert len(said) == REMARKS + 1
    assert said[-1] == "2 more names are not read as they stand"


def test_commands_say_it_of_names_that_somebody_typed(capsys: pytest.CaptureFixture[str]) -> None:
    for names, said in ((["-p", "my wife", "-p", "cat"], True), ([], False)):  # else ImageNet's
        assert main(["classify", CAT, *names]) == 0
        assert (WIFE in " ".join(capsys.readouterr().err.split())) == said


def test_every_picture_of_the_regions_has_one_line_of_known_form() -> None:
    lines = (ROOT / "tools/everyday_regions.txt").read_text(encoding="utf-8").splitlines()
    rectangle = r"r\d(?:-\d)? c\d(?:-\d)?"
    region = rf"[a-z]+ {rectangle}(?:, {rectangle})*"
    lines = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(rf"n\d{{8}}: (?:-|{region}(?:; {region})*)", line) for line in lines)
    assert sorted(line[:9] for line in lines) == [one.wnid for one in prompts.imagenet_classes()]


# ------------------------------------------------------------------------------------------------------------ contrasts
RED, GREEN = (4, 20, 24, 40), (40, 24, 60, 44)
BOTH = photo((64, 64), red=RED, green=GREEN)
ONLY_GREEN = photo((64, 64), green=(8, 8, 56, 56))


def shares(boxes, square):
    """`[n]`, which part of each box lies in a square, and of the square in a box, whichever is more."""
    low, high = np.maximum(boxes[:, :2], square[:2]), np.minimum(boxes[:, 2:], square[2:])
    inside = (high - low).clip(min=0).prod(axis=1)
    return inside / np.minimum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), (square[2] - square[0]) ** 2)


# With "square", as the bank's sentence ends in a full stop, and tiny towers know words between spaces.
@pytest.mark.parametrize("second_look", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_contrast_tells_one_square_from_the_other(kind, second_look, backbones):
    localizer = build(backbones[kind], second_look=second_look)
    found = localizer(BOTH, ["red square~green square", "green square~red square", "red square"])
    assert found.names == ("red square~green square", "green square~red square", "red square")
    for p, own, other in ((0, RED, GREEN), (1, GREEN, RED)):
        y, x = np.unravel_index(found.heatmaps[p].argmax(), (64, 64))
        assert own[0] <= x < own[2]
        assert own[1] <= y < own[3]
        boxes = found.boxes.of(found.names[p])
        assert (shares(boxes, other) < 0.5).all()
        if second_look or found.found[p]:
            assert shares(boxes, own)[0] > 0.5
    # Without a second look the whole picture decides, which fits one of the two better.
    assert found.found[:2].sum() == (2 if second_look else 1)
    # The score is the name's own, and so is what its presence is made of.
    np.testing.assert_array_equal(found.scores[0], found.scores[2])
    if second_look:
        np.testing.assert_array_equal(found.second_look.of_names[0], found.second_look.of_names[2])


@pytest.mark.parametrize("second_look", [False, True])
def test_a_picture_of_the_contrast_alone_has_no_boxes_and_says_why(second_look, backbones):
    localizer = build(backbones["gap_cnn"], method="grad_cam", second_look=second_look, min_presence=0)
    found = localizer(ONLY_GREEN, ["red square|ruby square~green square|leaf", "red square"])
    where = " inside its boxes" if second_look else ""
    assert found.reasons == (f"'green square' fits better{where}", None)
    assert (len(found.boxes.of(found.names[0])), len(found.unsure), found.verdict(0)) == (0, 0, "not found")
    again = found.by(found.rule, 0.0)
    assert again.reasons == found.reasons
    np.testing.assert_array_equal(again.presence, found.presence)


def test_a_worse_box_is_no_find_where_the_best_fits_the_contrast(backbones):
    localizer = build(backbones["gap_cnn"], second_look=True, min_score="auto")
    found = localizer(BOTH, ["red square~green square"])
    look, p = found.second_look, [0, 0]
    boxes = Boxes(np.array([GREEN, RED], np.float32), np.array([0.9, 0.1], np.float32), np.array(p), found.names)
    assert look.contrast_fits(boxes).tolist() == [True, False]
    weights = tuple(float(one == "map_score") for one in OF_BOX)  # the map's own score
    right = replace(look.calibration.right, bias=0.0, weights=weights)
    look = replace(look, calibration=replace(look.calibration, right=right))
    for min_score, kept in (("auto", 0), (0.05, 1)):
        judged = look.judge(boxes, [None], BoxRule(min_score=min_score))
        assert (len(judged.boxes), len(judged.unsure)) == (kept, 0)
        assert judged.reasons == (None if kept else "'green square' fits better inside its boxes",)
    judged = look.judge(boxes, [None], BoxRule(min_score=0.5))
    assert (judged.reasons, judged.contrasted.tolist()) == (("'green square' fits better inside its boxes",), [True])


def test_the_direction_is_the_name_minus_what_it_is_told_from(backbones):
    model, seen = backbones["gap_cnn"], []

    def spied(ctx):
        seen.append((ctx.text, ctx.redundant))
        return cam(ctx)

    localizer = build(model)
    give_function(localizer, spied)
    localizer(BOTH, ["red~green", "red"])
    red, green = model.encode_text([f"a {one} thing" for one in ("red", "green")])
    ((directions, empty),) = seen
    assert_rounded(directions[0], torch.stack([red - green, red]), TERMS, 1)
    assert empty[0, 0].abs().max() == 0 < empty[0, 1].abs().max()


def test_the_words_of_a_contrast_are_no_rivals(backbones):
    bank = Bank(Texts(backbones["gap_cnn"], ("{}",)), related_share=0.0)
    plain, contrasted = bank.rivals((("red",),)), bank.rivals((("red",),), (("zebra", "teapot"),))
    assert plain.contrasts is None
    assert plain.are_rivals.sum() - contrasted.are_rivals.sum() == 2
    assert bank.rivals((("red",),)).contrasts is None


def test_an_unknown_contrast_makes_the_name_unknown():
    localizer = Localizer(create_once("mini"))
    reasons = localizer.unknown_names(["cat~zyxwv", "zyxwv~cat", "cat~dog", "helmet~no helmet"])
    assert reasons.pop("helmet~no helmet") == "mini reads 'helmet' and 'no helmet' alike: name another contrast"
    assert list(reasons) == ["cat~zyxwv", "zyxwv~cat"]
    assert all("'zyxwv'" in reason for reason in reasons.values())


@pytest.mark.parametrize(
    "use",
    [
        lambda model: build(model).classify(BOTH, ["red~green", "blue"]),
        lambda model: protocol_for(["red~green", "blue"]),
        lambda model: protocol_for(["blue"], ["red~green"]),
    ],
)
def test_a_contrast_is_refused_where_it_means_nothing(use, backbones):
    with pytest.raises(UsageError, match=r"a name without a contrast here, got 'red~green': leave it out from ~ on$"):
        use(backbones["gap_cnn"])


def test_what_is_remembered_of_a_name_is_not_taken_for_its_contrast(backbones):
    memory, asked = Memory(), [["red"], ["red~green"], ["green~red"], ["red"]]
    for names in asked:
        kept, fresh = (build(backbones["vit"], **how)(BOTH, names) for how in ({"memory": memory}, {}))
        np.testing.assert_array_equal(kept.maps, fresh.maps)
        assert kept.names == tuple(names)


def test_pictures_stand_for_the_name_and_not_for_its_contrast(backbones):
    names, exemplars = split_entries(["@a.jpg|cup|mug~glass", "lid~pot=@~/b.jpg", "@c~1.jpg"])
    assert names == ["cup|mug~glass", "lid~pot", "c 1"]
    localizer = build(backbones["gap_cnn"], exemplars=[Exemplar("red~green", BOTH)])
    red, told = parse(["red~green"]).synonyms[0], parse(["red~green"]).contrasts[0]
    assert (localizer._texts.by_exemplars(red), localizer._texts.by_exemplars(told)) == (True, False)
    assert len(exemplars) == 3
