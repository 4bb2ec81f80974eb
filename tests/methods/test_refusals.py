"""Options out of range, and towers that a method is not defined on: one line says what was expected."""

import math
import re
from typing import Any

import pytest

from cliploc.errors import UsageError
from cliploc.localizer import Localizer
from cliploc.methods import find, resolve_options
from tests.methods.vits import AveragingVit, QueryingVit, ours, scenes, tiny

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("chefer", {"blocks": 2.0}, "`int | str`"),
    ("finer_cam", {"block": 0}, "`int` <= -1"),
    ("gem", {"temperature": 0.0}, "`float` > 0.0"),
    ("cam+layer_cam", {"stages": -1}, "`array`"),
    ("cam+layer_cam", {"stages": "2,x"}, "`int`"),
    ("naclip", {"sigma": math.nan}, "`float` > 0.0"),
    ("occlusion", {"side": 1.5}, "`float` <= 1.0"),
    ("grad_eclip", {"published": 1}, "`bool`"),
]


@pytest.mark.parametrize(("name", "options", "expected"), REFUSED, ids=str)
def test_an_option_out_of_range_is_one_line(name: str, options: dict[str, Any], expected: str) -> None:
    (option,) = options
    member = name.rpartition("+")[2]
    with pytest.raises(
        UsageError, match=rf"^expected {member}'s option {option} as [^\n]*{re.escape(expected)}[^\n]*, got "
    ):
        resolve_options(find(name), options)


def test_more_blocks_than_the_tower_has() -> None:
    backbone = tiny(AveragingVit)
    with pytest.raises(UsageError, match=r"^expected a block of vit from -2 to -1"):
        ours("rollout", backbone, scenes(), backbone.encode_text(["red"]), blocks=3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, AveragingVit) for name in ("raw_attention", "ts_cam", "lctr", "decomposition", "grad_eclip")),
        *((name, QueryingVit) for name in ("decomposition", "grad_eclip")),
    ],
)
def test_a_tower_that_pools_otherwise_is_refused(name: str, kind: type) -> None:
    with pytest.raises(UsageError, match=rf"{name} does not work on vit, a vit tower with .* pooling: use one of"):
        Localizer(tiny(kind), method=name, text_cache=False)
