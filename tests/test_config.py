"""Values out of texts."""

from dataclasses import fields

import pytest

from cliploc.errors import UsageError
from cliploc.evaluate.train.train_settings import TrainOptions
from cliploc.options import AnnotateOptions, FaithfulnessOptions, Options, SegmentationOptions, option_of, parse_share


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
