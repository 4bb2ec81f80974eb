"""Sanity checks, grid pointing and the measurer: other names, random towers, ties; what is shared and refused."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.tasks.faithfulness.measure import (
    Faithfulness,
    Judged,
    Measured,
    Scorer,
    spearman,
    with_random_weights,
)
from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics, faithfulness_metrics
from cliploc.evaluate.tasks.faithfulness.metrics.grid_pointing import cells
from cliploc.localizer import Localizer
from cliploc.options import FaithfulnessOptions
from tests.evaluate.faithfulness.models import HW, judged, other_maps, picture, random_heat, weights
from tests.tiny import tower

NAMES = ["red", "green", "blue", "a zebra"]


def measurer(kind: str, methods: list[str], metrics: list[str], **more: object) -> Faithfulness:
    localizer = Localizer(tower(kind, (6, 5)), method=methods[0], resize="squash", min_presence=0, **more)
    options = FaithfulnessOptions(steps=4)
    return Faithfulness(localizer, NAMES, chosen_metrics(metrics), {one: {} for one in methods}, options)


def red_square() -> np.ndarray:
    picture = np.full((48, 40, 3), 128, np.uint8)
    picture[16:24, 8:16] = (255, 0, 0)
    return picture


def test_spearman_is_scipys_also_with_ties() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        a, b = random.integers(0, 6, (2, 30))
        ours = spearman(torch.from_numpy(a).float(), torch.from_numpy(b).float())
        assert ours == pytest.approx(spearmanr(a, b).statistic, abs=1e-9)
    assert spearman(torch.ones(4), torch.arange(4.0)) is None


@pytest.mark.parametrize("kind", ["gap_cnn", "vit"])
def test_every_metric_has_its_numbers_and_a_blind_map_is_the_same_for_all(kind: str) -> None:
    """Nothing is random twice; a map that reads neither text nor picture is not changed by either."""
    of = measurer(kind, ["grad_cam", "random"], faithfulness_metrics.names())
    seen = of.see("a", red_square(), "red", target="red")
    assert of.known[seen.target] == "red"
    measured = of.measure(seen)
    numbers = {key for one in faithfulness_metrics for key in one.numbers}
    for one in measured.values():
        assert one.values.keys() == numbers
        assert {name for metric in faithfulness_metrics for name in metric.curves} == one.curves.keys()
    assert measured["random"].values["names"] == measured["random"].values["randomisation"] == pytest.approx(1)
    assert measured["random"].values["coherency"] == pytest.approx(1)
    assert (measured["grad_cam"].values["randomisation"] or 0) < 0.99
    again = of.measure(of.see("a", red_square(), "red", target="red"))
    assert again == measured


def test_a_metric_that_gives_no_number_is_refused_at_the_first_map(monkeypatch: pytest.MonkeyPatch) -> None:
    of = measurer("gap_cnn", ["grad_cam"], ["increase"])
    monkeypatch.setattr(of.metrics[0], "measure", lambda _: Measured({"increase": float("nan")}))
    with pytest.raises(UsageError, match="expected a number of each map, or None, from the metric increase, got nan"):
        of.measure(of.see("a", red_square(), "red"))


@pytest.mark.parametrize("kind", ["gap_cnn", "attention_pool_cnn", "vit"])
def test_the_top_is_random_first_and_the_model_stays(kind: str) -> None:
    backbone = tower(kind, (6, 5))
    before = {name: one.clone() for name, one in backbone.named_parameters()}
    half = with_random_weights(backbone, 0.5, seed=0)
    names = [name for name, one in backbone.named_parameters() if one.numel() > 1]
    changed = {name for name in names if not torch.equal(dict(half.named_parameters())[name], before[name])}
    first, last = {
        "gap_cnn": ("stages.0", "stages.2"),
        "attention_pool_cnn": ("stages", "pool_layer.c_proj"),
        "vit": ("patch blocks.0.ln class_token positions", "blocks.1.mlp projection"),
    }[kind]
    assert not {name for name in changed if name.startswith(tuple(first.split()))}
    assert {name for name in names if name.startswith(tuple(last.split()))} <= changed
    assert all(torch.equal(one, before[name]) for name, one in backbone.named_parameters())
    for name in names:  # the same values at other places
        assert torch.equal(
            dict(half.named_parameters())[name].flatten().sort().values, before[name].flatten().sort().values
        )


def test_maps_of_other_tools_at_another_size() -> None:
    of = measurer("gap_cnn", ["cam"], ["deletion", "insertion"])
    seen = of.see("a", red_square(), "red")
    [heat] = of.maps(seen).values()
    assert of.measure_map(seen, heat).values == of.measure(seen)["cam"].values
    small = of.measure_map(seen, heat[::2, ::2])
    assert small.values.keys() == {"deletion", "deletion_cosine", "insertion", "insertion_cosine"}


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^names needs the method that made the maps"):
        chosen_metrics(["names"], with_method=False)
    with pytest.raises(UsageError, match=r"^expected at least one metric, got none: name some of adcc"):
        chosen_metrics([])
    with pytest.raises(UsageError, match=r"expected resize squash, got crop"):
        Faithfulness(Localizer(tower("gap_cnn", (6, 5)), method="cam", resize="crop"), NAMES, [], {"cam": {}})
    of = measurer("gap_cnn", ["cam"], ["deletion"])
    with pytest.raises(InputError, match=r"^a: gap_cnn does not know the name 'teapot': leave it out"):
        of.see("a", red_square(), None, target="teapot")


DOCUMENT = Path(__file__).parents[3] / "docs/faithfulness.md"


@pytest.mark.parametrize("name", faithfulness_metrics.names())
def test_the_table_has_every_metric_with_its_numbers(name: str) -> None:
    metric = faithfulness_metrics.get(name)
    [row] = re.findall(rf"^\| `{name}` \| (.*)$", DOCUMENT.read_text(), re.MULTILINE)
    for key, number in metric.numbers.items():
        assert f"`{key}`" in row
        assert number.best in row.partition(" | ")[0] or not number.best
    assert metric.paper.partition(" ")[0] in row
    assert metric.__doc__ is not None


# -------------------------------------------------------------------------------------------------------- grid pointing
@pytest.mark.parametrize("hw", [(6, 8), (7, 9)])
def test_the_grid_has_the_picture_in_one_cell_and_its_heat_is_counted_there(hw: tuple[int, int]) -> None:
    images, of, seen = picture(hw), weights(hw=hw), []
    heat = random_heat(hw)

    def of_pictures(_: object, pictures: Tensor) -> Tensor:
        seen.append(pictures)
        return heat[None]

    for seed in range(4):
        one = judged(heat, images, of, others=other_maps(of_pictures=of_pictures), seed=seed)
        found = chosen_metrics(["grid_pointing"])[0].measure(one).values["grid_pointing"]
        places = cells(*hw)
        assert len({(y, x) for rows, columns in places for y in range(hw[0])[rows] for x in range(hw[1])[columns]}) == (
            hw[0] * hw[1]
        )
        rows, columns = places[random.Random(seed).randrange(4)]
        expected = sum(heat[y, x] for y in range(hw[0])[rows] for x in range(hw[1])[columns]) / heat.sum()
        assert found == pytest.approx(float(expected), rel=1e-5)
        small = torch.nn.functional.interpolate(
            images, seen[-1][0, :, rows, columns].shape[-2:], mode="bilinear", antialias=True
        )
        assert torch.equal(seen[-1][0, :, rows, columns], small[0])


def test_a_blind_map_counts_a_quarter_and_methods_share_the_pass() -> None:
    backbone = tower("gap_cnn", (6, 6))
    localizer = Localizer(backbone, method="cam", resize="squash", min_presence=0)
    passes: list[int] = []
    next(one for one in backbone.modules() if isinstance(one, torch.nn.Conv2d)).register_forward_hook(
        lambda _, given, __: passes.append(len(given[0]))
    )
    metrics = chosen_metrics(["grid_pointing", "names", "randomisation"])
    counted = []
    for methods in (["layer_cam", "centre_box"], ["layer_cam", "centre_box", "cam", "random"]):
        passes.clear()
        of = Faithfulness(localizer, ["red", "green"], metrics, {one: {} for one in methods})
        found = of.measure(of.see("a", np.full((48, 40, 3), 90, np.uint8)))
        assert found["centre_box"].values["grid_pointing"] == pytest.approx(0.25)
        counted.append((len(passes), sum(passes), found["layer_cam"]))
    assert counted[0] == counted[1]


# ---------------------------------------------------------------------------------------------------------- order alone
BY_ORDER = ("deletion", "insertion", "positive", "negative", "road")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=48, max_size=48), st.sampled_from(["cube", "affine", "exp"]))
def test_only_the_order_of_the_map_counts(values: list[int], how: str) -> None:
    heat = torch.tensor(values, dtype=torch.float64).view(HW)
    other = {"cube": heat**3, "affine": 3 * heat - 7, "exp": (heat / 10).exp()}[how]
    images, of = picture(), weights()
    first, second = (judged(one, images, of, steps=6) for one in (heat, other))
    for metric in chosen_metrics(BY_ORDER):
        assert metric.measure(first) == metric.measure(second)


SIDE = (56, 56)


def test_no_changed_picture_is_scored_twice() -> None:
    of, seen, shared = weights(hw=SIDE) / 8, [], {}

    def encode(images: Tensor) -> Tensor:
        seen.extend(one.numpy().tobytes() for one in images)
        return images.flatten(1) @ of.flatten(1).T

    metrics = chosen_metrics([one.name for one in faithfulness_metrics if not one.needs_method])
    scorer, options = Scorer(encode, torch.eye(3), 0.5), FaithfulnessOptions(steps=7)
    for seed in (2, 3):
        one = Judged(picture(SIDE), random_heat(SIDE, seed), 0, None, scorer, lambda x: x - 1, options, shared)
        for metric in metrics:
            metric.measure(one)
    assert len(seen) > 50
    assert len(set(seen)) == len(seen)
