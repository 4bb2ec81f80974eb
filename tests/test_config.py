"""Values out of texts."""

from __future__ import annotations

import pytest

from cliploc.config import parse_share
from cliploc.errors import UsageError


@pytest.mark.parametrize(("text", "share"), [("0", 0.0), ("1", 1.0), ("0.3", 0.3), (" .5 ", 0.5), ("1e-2", 0.01)])
def test_a_share_is_a_number_from_0_to_1(text, share):
    assert parse_share(text, "expected a share") == share


@pytest.mark.parametrize("text", ["", "-0.1", "1.01", "nan", "inf", "half", "0,5"])
def test_what_is_no_share_is_said_with_what_was_expected(text):
    with pytest.raises(UsageError) as error:
        parse_share(text, "line 3: expected a share")
    assert str(error.value) == f"line 3: expected a share, got {text}"
