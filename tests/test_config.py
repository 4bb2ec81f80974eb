"""Values out of texts."""

import re
from dataclasses import fields

import pytest

from cliploc.config import FaithfulnessOptions, Options, SegmentationOptions, parse_share
from cliploc.errors import UsageError


@pytest.mark.parametrize(("text", "share"), [("0", 0.0), ("1", 1.0), ("0.3", 0.3), (" .5 ", 0.5), ("1e-2", 0.01)])
def test_a_share_is_a_number_from_0_to_1(text, share):
    assert parse_share(text, "expected a share") == share


@pytest.mark.parametrize("text", ["", "-0.1", "1.01", "nan", "inf", "half", "0,5"])
def test_what_is_no_share_is_said_with_what_was_expected(text):
    with pytest.raises(UsageError) as error:
        parse_share(text, "line 3: expected a share")
    assert str(error.value) == f"line 3: expected a share, got {text}"


NUMBERS = {  # a valid value of each option that takes numbers, alone and in a list
    Options: {
        "image_size": (224, (224, 224)),
        "scales": ((1, 2),),
        "windows": ((1, 2),),
        **dict.fromkeys(("threshold", "min_area", "nms_iou", "split_peaks", "min_score", "min_presence"), (0.5,)),
        **dict.fromkeys(("max_boxes", "batch_size"), (1,)),
    },
    SegmentationOptions: {
        **dict.fromkeys(("short_side", "window", "stride", "logit_scale", "candidates"), (64,)),
        **dict.fromkeys(("background_threshold", "area_threshold"), (0.5,)),
    },
    FaithfulnessOptions: {"steps": (2,), "tolerance": (0.02,)},
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_true_false_and_what_is_not_finite_are_no_numbers_in_any_option(kind):
    for name, values in NUMBERS[kind].items():
        for valid in values:
            kind(**{name: valid})
            for wrong in (True, False, float("nan"), float("inf"), 10**50):
                with pytest.raises(UsageError, match=rf"^expected {name}[^\n]*$"):
                    kind(**{name: (valid[0], wrong) if isinstance(valid, tuple) else wrong})
    numeric = {one.name for one in fields(kind) if re.search(r"\b(int|float)\b", str(one.type))}
    assert numeric == NUMBERS[kind].keys()


@pytest.mark.parametrize("name", ["model", "method", "head", "templates", "calibration", "learnt", "guide", "memory"])
@pytest.mark.parametrize("wrong", [5, True, object()])
def test_an_object_of_another_kind_is_refused(name, wrong):
    with pytest.raises(UsageError, match=rf"^expected {name}, "):
        Options(**{name: wrong})


@pytest.mark.parametrize("values", [{"model": None}, {"method": ""}])
def test_no_model_and_an_empty_method_are_refused(values):
    with pytest.raises(UsageError, match=rf"^expected {next(iter(values))}, "):
        Options(**values)
