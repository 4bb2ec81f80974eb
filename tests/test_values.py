"""Values and options refuse what they cannot be."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliploc.errors import UsageError
from cliploc.evaluate.train.train_settings import TrainOptions
from cliploc.options import AnnotateOptions, FaithfulnessOptions, Options, SegmentationOptions, option_of, parse_share
from cliploc.towers.tower import Needs
from cliploc.values import Boxes, ignored_label, rounded_below

indices = st.one_of(st.just("all"), st.lists(st.integers(-9, -1), max_size=4, unique=True).map(tuple))
needs = st.builds(Needs, st.lists(st.integers(-9, -1), max_size=4, unique=True).map(tuple), indices, indices)


def wanted(value):
    return set(range(-9, 0)) if value == "all" else set(value)


@given(needs, needs)
def test_the_union_of_needs_serves_both_and_no_more(a, b):
    union = a | b
    for field in ("features", "tokens", "attention"):
        both = wanted(getattr(a, field)) | wanted(getattr(b, field))
        assert wanted(getattr(union, field)) == both
        assert (getattr(union, field) == "all") == ("all" in (getattr(a, field), getattr(b, field)))
    assert union == b | a
    assert union | a == union
    assert wanted((a | Needs()).features) == wanted(a.features)


def boxes(n=3, **changes):
    values = {
        "xyxy": np.arange(4 * n, dtype=np.float32).reshape(n, 4),
        "score": np.linspace(1, 0, n, dtype=np.float32),
        "label": np.array([0, 1, 0][:n]),
        "names": ("cat", "dog", "bird"),
    }
    return Boxes(**{**values, **changes})


def test_boxes_of_a_name():
    assert len(boxes()) == 3
    assert boxes().of("cat").tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert boxes().of("bird").shape == (0, 4)
    with pytest.raises(UsageError, match=r"expected one of the names asked for \(cat, dog, bird\), got 'cow'"):
        boxes().of("cow")


def test_some_of_the_boxes():
    assert boxes().where([True, False, True]).xyxy.tolist() == boxes().where([0, 2]).xyxy.tolist()
    assert len(boxes().where([])) == 0


def test_pixels_that_do_not_count_have_a_label_that_is_no_class():
    assert [ignored_label(classes) for classes in (2, 255, 256)] == [255, 255, 65535]


@given(st.floats(0, 1))
def test_a_number_below_the_least_does_not_look_as_large(value):
    shown = rounded_below(value, 0.5)
    assert (float(shown) < 0.5) == (value < 0.5) or value > 0.49995, "four digits"
    assert float(shown) == pytest.approx(value, abs=0.00501)


def test_two_decimals_are_enough_elsewhere():
    assert [rounded_below(value, 0.5) for value in (0.4967, 0.494, 0.5, 0.812)] == ["0.4967", "0.49", "0.50", "0.81"]


@pytest.mark.parametrize(
    "change",
    [
        {"xyxy": np.zeros((3, 5), np.float32)},
        {"xyxy": np.zeros((2, 4), np.float32)},
        {"score": np.zeros(2, np.float32)},
        {"label": np.zeros((3, 1), np.int64)},
    ],
    ids=["five numbers", "too few boxes", "too few scores", "labels in a column"],
)
def test_boxes_whose_parts_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match=r"expected xyxy \[n, 4\], score \[n\] and label \[n\], got"):
        boxes(**change)


# -------------------------------------------------------------------------------------------------------------- options
@pytest.mark.parametrize(("text", "share"), [("0", 0.0), ("1", 1.0), ("0.3", 0.3), (" .5 ", 0.5), ("1e-2", 0.01)])
def test_a_share_is_a_number_from_0_to_1(text, share):
    assert parse_share(text, "expected a share") == share


@pytest.mark.parametrize("text", ["", "-0.1", "1.01", "nan", "inf", "half", "0,5"])
def test_what_is_no_share_is_named_with_what_was_expected(text):
    with pytest.raises(UsageError, match=f"^line 3: expected a share, got {text}$"):
        parse_share(text, "line 3: expected a share")


KINDS = (Options, SegmentationOptions, FaithfulnessOptions, AnnotateOptions, TrainOptions)
EVERY = [(kind, one) for kind in KINDS for one in fields(kind)]


@pytest.mark.parametrize(("kind", "one"), EVERY, ids=lambda one: getattr(one, "name", ""))
def test_every_option_refuses_what_it_cannot_be_in_one_line(kind, one):
    wrong = [object(), [object()]]
    if option_of(one).metavar in ("N", "0-1", "0-1|auto", "5%", "1,2", "1,1.5,2", "1-4096"):
        numbers = [True, False, float("nan"), float("inf"), 10**50, -1]
        wrong += numbers + [(1, number) for number in numbers]
    for value in wrong:
        with pytest.raises(UsageError, match=r"^expected [^\n]+, got [^\n]+$"):
            kind(**{one.name: value})


@pytest.mark.parametrize("values", [{"model": None}, {"method": ""}])
def test_no_model_and_an_empty_method_are_refused(values):
    with pytest.raises(UsageError, match=rf"^expected {next(iter(values))}\b"):
        Options(**values)
