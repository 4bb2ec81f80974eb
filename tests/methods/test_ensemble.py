"""Several methods as one, and beside each other: their mean by hand, and one forward pass for all of them."""

from typing import Any

import numpy as np
import pytest
import torch

from cliploc.errors import UnknownNameError, UsageError
from cliploc.localizer import Localizer
from cliploc.methods import find, methods, resolve_options
from cliploc.towers.tower import Needs
from tests.commands import check_refusal
from tests.methods.peers import min_max, tiny_scene
from tests.test_localizer import PHOTOS, TALL, WIDE, same
from tests.tiny import Counting, tower

ON_VIT = [
    method.name
    for method in methods
    if "vit" in method.towers
    and method.family != "perturbation"
    and method.name not in ("integrated_gradients", "smooth_grad")  # they run the tower on other pictures
    and not method.needs().guide
]


def test_the_map_is_the_mean_of_the_members() -> None:
    scene = tiny_scene("attention_pool_cnn")
    names = ["cam", "grad_cam", "vl_score"]
    expected = torch.zeros(2, 3, 5, 6)
    for name in names:
        raw = scene.ours(name)
        raw = raw.relu() if methods.get(name).relu else raw
        expected += min_max(raw) / len(names)
    method = find("+".join(names))
    ctx = scene.context(method.needs())
    torch.testing.assert_close(method.function(ctx), expected, rtol=1e-4, atol=1e-5)


def test_grids_of_different_fineness_meet_on_the_finest() -> None:
    localizer = Localizer("mini", method="cam+layer_cam", method_options={"stages": (-1, -3)})
    scene_maps = next(localizer.compare([TALL], ["cat"], {"layer_cam": {"stages": (-1, -3)}}))["layer_cam"].maps
    both = localizer(TALL, ["cat"])
    assert both.maps.shape == scene_maps.shape


def test_what_is_known_of_an_ensemble() -> None:
    both = find("cam + layer_cam")
    cam, layer_cam = methods.get("cam"), methods.get("layer_cam")
    assert both.name == "cam+layer_cam"
    assert both.threshold == (cam.threshold + layer_cam.threshold) / 2
    assert both.towers == {"cnn"}
    assert both.needs(**{"layer_cam.stages": (-2,)}) == Needs(features=(-2, -1))
    assert find("cam") is cam


def test_options_go_to_the_members_that_have_them() -> None:
    both = find("score_cam+gscore_cam+cam")
    assert resolve_options(both, {"temperature": 0.1, "top_k": 3}) == {
        "score_cam.temperature": 0.1,
        "gscore_cam.temperature": 0.1,
        "gscore_cam.top_k": 3,
    }
    for order in ({"temperature": 1, "score_cam.temperature": 2}, {"score_cam.temperature": 2, "temperature": 1}):
        assert resolve_options(both, order) == {"score_cam.temperature": 2, "gscore_cam.temperature": 1}
    with pytest.raises(UsageError, match=r"score_cam\+gscore_cam\+cam has no option 'stages': it has score_cam\.temp"):
        resolve_options(both, {"stages": (-1,)})
    assert resolve_options(find("grad_cam"), {"grad_cam.block": -2}) == {"block": -2}  # a method by itself


def test_values_of_the_declared_types_stay_as_they_are() -> None:
    for method in methods:
        assert resolve_options(method, method.options) == method.options
    assert resolve_options(find("gem"), {"depth": np.int64(3), "temperature": 1}) == {"depth": 3, "temperature": 1}
    assert resolve_options(find("layer_cam"), {"stages": [-1, -2]}) == {"stages": (-1, -2)}


@pytest.mark.parametrize(
    ("name", "option", "text", "value"),
    [
        ("gem", "temperature", "0.5", 0.5), ("gem", "temperature", "none", None), ("gem", "depth", "3", 3),
        ("grad_eclip", "published", "true", True), ("grad_eclip", "published", "0", False),
        ("layer_cam", "stages", "-1,-3", (-1, -3)), ("layer_cam", "stages", "(-1, -2)", (-1, -2)),
        ("chefer", "blocks", "all", "all"), ("ts_cam", "head", "a=b", "a=b"),
    ],
)  # fmt: skip
def test_texts_get_the_declared_types(name: str, option: str, text: str, value: Any) -> None:
    found = resolve_options(find(name), {option: text})[option]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "method", "names"),
    [("gap_cnn", "cam+cam", "'cam' 2 times"), ("gap_cnn", "cam+", "''"), ("vit", "cam+grad_cam", "vit")],
)
def test_an_ensemble_has_each_method_once_and_works_where_all_do(kind: str, method: str, names: str) -> None:
    with pytest.raises((UsageError, UnknownNameError)) as error:
        Localizer(tower(kind), method=method)
    check_refusal(str(error.value), names)


@pytest.mark.parametrize(
    ("kind", "spec"), [("attention_pool_cnn", "cam+grad_cam+layer_cam"), ("vit", "+".join(ON_VIT))], ids=["cnn", "vit"]
)
def test_one_forward_pass_serves_all_methods(kind: str, spec: str) -> None:
    backbone = Counting(tower(kind, (8, 8)))
    localizer = Localizer(backbone, method=spec, text_cache=False)
    localizer([WIDE, TALL], ["red", "blue", "green"])
    assert (backbone.traces, backbone.images) == (1, 0)
    list(localizer.compare([WIDE, TALL], ["red", "blue", "green"], spec.split("+")))
    assert (backbone.traces, backbone.images) == (2, 0)


@pytest.mark.parametrize("kind", ["gap_cnn", "vit"])
def test_compared_results_are_those_of_each_alone(kind: str) -> None:
    backbone = tower(kind, (8, 8))
    options: dict[str, dict[str, Any]] = {"grad_cam": {}, "score_cam": {"temperature": 0.1}, "grad_cam+vl_score": {}}
    shared: dict[str, Any] = {"scales": (1, 1.5), "flip": True, "batch_size": 2, "templates": "a {} thing"}
    results = list(Localizer(backbone, method="grad_cam", **shared).compare(PHOTOS[:3], ["red", "blue"], options))
    assert len(results) == 3
    for spec, part in options.items():
        alone = Localizer(backbone, method=spec, method_options=part, **shared)
        for result, expected in zip(results, alone.stream(PHOTOS[:3], ["red", "blue"]), strict=True):
            assert list(result) == list(options)
            same(result[spec], expected)


@pytest.mark.parametrize("requested", ["cam", [], 5, {"cam": 5}])
def test_comparisons_are_refused_before_anything_is_computed(requested: Any) -> None:
    backbone = Counting(tower("gap_cnn", (8, 8)))
    with pytest.raises(UsageError, match=r"^expected [^\n]+ got [^\n]+$"):
        Localizer(backbone).compare([TALL], ["red"], requested)
    assert backbone.traces == 0
