"""Options out of range, and towers that a method is not defined on: one line says what was expected."""

import math
from typing import Any

import pytest

from cliploc.errors import UsageError
from cliploc.localizer import Localizer
from cliploc.methods import methods
from tests.methods.towers import tiny_tower
from tests.methods.vits import AveragingVit, QueryingVit, ours, scenes, tiny

FROM_END = "expected a block counted from the end, got 0: -1 is the last"
SIDE = "expected a side from 0.05 to 1 of the input's, got "
STAGES = "expected two stages or more, counted from the end, got "
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("attnlrp", {"gamma": -1.0}, "expected a gamma of 0 or more, got -1.0: the authors try 0 to 1"),
    ("clip_surgery", {"depth": 0}, "expected a depth of 1 block or more, got 0: the authors use 6"),
    ("decomposition", {"blocks": 0}, "expected 1 block or more, got 0: the authors use 4"),
    ("finer_cam", {"block": 0}, FROM_END),
    ("gem", {"temperature": 0.0}, "expected a temperature above 0, got 0.0: leave it out for the adaptive one"),
    ("gscore_cam", {"top_k": 0}, "expected top_k of 1 channel or more, got 0: the paper uses 300"),
    ("integrated_gradients", {"empty": "grey"}, "expected empty to be one of mean, black, got 'grey'"),
    ("layer_cam", {"stages": (0,)}, "expected stages counted from the end for layer_cam, got (0,): -1 is the last"),
    ("m2ib", {"beta": 0.0}, "expected a beta above 0, got 0.0: the authors use 0.1"),
    *(
        ("naclip", {"sigma": sigma}, f"expected a sigma above 0 patches, got {sigma}: the paper uses 5")
        for sigma in (0.0, -1.0, math.nan)
    ),
    *(("occlusion", {"side": side}, f"{SIDE}{side}") for side in (0.0, 1.5, math.nan)),
    ("pearl", {"key_weight": -0.1}, "expected a key_weight of 0 or more, got -0.1: the authors' code uses 0.08"),
    ("refine_cam", {"base": "cam"}, "expected base to be one of grad_cam, grad_cam_pp, layer_cam, got 'cam'"),
    ("refine_cam", {"stages": (-1,)}, f"{STAGES}(-1,): -1 is the last"),
    ("resclip", {"gain": 0.0}, "expected a gain and a sigma above 0, got 0.0 and 5.0"),
    ("resclip", {"residual": 1.1}, "expected a residual from 0 to 1, got 1.1: 0 is NACLIP"),
    ("rise", {"budget": 15}, "expected a budget of 16 masks or more, got 15: the paper uses 2000"),
    *(
        ("rollout", {"blocks": blocks}, "expected blocks to be a number of last blocks, 1 or more, or all, got ")
        for blocks in (0, -1, "most", 1.5)
    ),
    ("rollout", {"blocks": 3}, "expected a block of vit from -2 to -1"),
    *(("sc_clip", {"outliers": o}, f"expected a share of outliers from 0 to below 1, got {o}") for o in (-0.1, 1.0)),
    ("score_cam", {"channels": "neurons"}, "expected channels to be one of features, tokens, heads, keys, queries, v"),
    ("score_cam", {"components": 0}, "expected 1 component or more, got 0: leave it out for the feature maps themse"),
    ("smooth_grad", {"noise": -0.1}, "expected a noise of 0 or more, got -0.1: the paper uses 0.1 to 0.2"),
]


@pytest.mark.parametrize(("name", "options", "said"), REFUSED, ids=str)
def test_an_option_out_of_range_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    backbone = tiny_tower("vit" if "vit" in methods.get(name).towers else "gap_cnn")
    with pytest.raises(UsageError) as error:
        ours(name, backbone, scenes(), backbone.encode_text(["red"]), **options)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("name", ["raw_attention", "ts_cam", "lctr"])
def test_a_tower_that_averages_its_patches_is_refused_with_what_to_choose(name: str) -> None:
    backbone = tiny(AveragingVit)
    with pytest.raises(UsageError, match=r"class token or an attention pool, got vit, .* choose rollout, chefer"):
        ours(name, backbone, scenes(), backbone.encode_text(["red"]))


@pytest.mark.parametrize("kind", [AveragingVit, QueryingVit])
@pytest.mark.parametrize("name", ["decomposition", "grad_eclip"])
def test_a_tower_without_a_class_tokens_embedding_is_refused(name: str, kind: type) -> None:
    with pytest.raises(UsageError, match=rf"{name} does not work on vit, a vit tower with .* pooling: use one of"):
        Localizer(tiny(kind), method=name, text_cache=False)
