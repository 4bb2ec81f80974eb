"""Options out of range, and towers that a method is not defined on: one line says what was expected."""

import math
from typing import Any

import pytest

from cliploc.errors import UsageError
from cliploc.localizer import Localizer
from cliploc.methods import find, resolve_options
from tests.methods.vits import AveragingVit, QueryingVit, ours, scenes, tiny

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("attnlrp", {"gamma": -1.0}, "a number ≥ 0"),
    ("chefer", {"blocks": 2.0}, "a whole number ≥ 1 or all"),
    ("finer_cam", {"block": 0}, "a whole number ≤ -1"),
    ("gem", {"depth": 1.5}, "a whole number ≥ 1"),
    ("gem", {"iterations": -1}, "a whole number ≥ 0"),
    ("gem", {"temperature": 0.0}, "a number > 0 or none"),
    ("gla_clip", {"rounds": 0}, "a whole number ≥ 1"),
    ("radseg", {"scga": -1}, "a number > 0"),
    ("cam+layer_cam", {"stages": -1}, "a list of at least 1, each item a whole number ≤ -1"),
    *(("naclip", {"sigma": sigma}, "a number > 0") for sigma in (0.0, -1.0, math.nan, "wide")),
    *(("occlusion", {"side": side}, "a number ≥ 0.05 and ≤ 1") for side in (0.0, 1.5, math.nan)),
    ("refine_cam", {"base": "cam"}, "grad_cam or grad_cam_pp or layer_cam"),
    ("resclip", {"residual": 1.1}, "a number ≥ 0 and ≤ 1"),
    ("rise", {"published": 1}, "true or false"),
    ("sc_clip", {"outliers": 1.0}, "a number ≥ 0 and < 1"),
    ("score_cam", {"components": True}, "a whole number ≥ 1 or none"),
]


@pytest.mark.parametrize(("name", "options", "expected"), REFUSED, ids=str)
def test_an_option_out_of_range_is_one_line(name: str, options: dict[str, Any], expected: str) -> None:
    ((option, value),) = options.items()
    with pytest.raises(UsageError) as error:
        resolve_options(find(name), options)
    member = name.rpartition("+")[2]
    assert str(error.value) == f"expected {member}'s option {option} to be {expected}, got {value!r}"


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
