"""Contrast names: "red~green" finds what is nearer to "red" than to "green"."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cliploc import Localizer
from cliploc.boxes import BoxRule
from cliploc.errors import UsageError
from cliploc.find.calibration import OF_BOX
from cliploc.find.memory import Memory
from cliploc.find.presence import Bank
from cliploc.find.prompts import parse
from cliploc.find.segmentation.protocol import protocol_for
from cliploc.find.texts import Texts
from cliploc.images.exemplars import Exemplar, split_entries
from cliploc.methods.cam import cam
from cliploc.values import Boxes
from tests.commands import create_once
from tests.test_localizer import TERMS, build, photo
from tests.tiny import KINDS, give_function
from tests.tolerances import assert_rounded

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

    for background in ((), ("blue",)):
        localizer = build(model, background=background)
        give_function(localizer, spied)
        localizer(BOTH, ["red~green", "red"])
    red, green, blue = model.encode_text([f"a {one} thing" for one in ("red", "green", "blue")])
    (plain, empty), (around, nothing) = seen
    assert_rounded(plain[0], torch.stack([red - green, red]), TERMS, 1)
    assert_rounded(around[0], torch.stack([red - (green + blue) / 2, red - blue]), TERMS, 1)
    assert empty[0, 0].abs().max() == nothing.abs().max() == 0 < empty[0, 1].abs().max()


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
        lambda model: build(model, background=["red~green"]),
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
