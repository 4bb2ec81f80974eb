"""What a folder teaches, against the equations and on things whose place is known; what is kept of a picture."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from cliploc import Localizer
from cliploc.find.directions import Direction, Pictures, Whitening, fit_direction, stability
from cliploc.find.learnt import (
    MOST_CELLS,
    MOST_CHANNELS,
    MOST_OF_PLACES,
    drawn,
    keep,
    narrowed,
    packed,
    pooled,
    projected,
    taught_features,
    unpacked,
)
from cliploc.find.prepare import Request
from cliploc.refine.affinity import WINDOWS_CUT
from tests.commands import PHOTOS
from tests.find.teaching.planted import CELLS, Planted, planted


def pictures_of(alike: Sequence[bool] = (True,) * 20) -> tuple[list[Planted], Pictures, Tensor]:
    every = [planted(i, alike=one) for i, one in enumerate(alike)]
    lessons = [one.lesson for one in every]
    heat = torch.stack([pooled(one.heat[0].float(), (CELLS, CELLS)).flatten() for one in lessons])
    return every, Pictures.of(lessons, Whitening.of(lessons)), heat


def test_reviewed_pictures_teach_a_name_that_has_no_map() -> None:
    every, pictures, heat = pictures_of()
    boxes = {i: every[i].mask.flatten().float() for i in range(3)}
    uses = torch.ones(20, dtype=torch.bool)
    warm = fit_direction(pictures, torch.zeros_like(heat), uses, boxes, known=False).direction(pictures.whitened)
    masks = torch.stack([one.mask.flatten() for one in every])
    assert float(warm[masks].mean() - warm[~masks].mean()) > 0.6  # on all of the things


@pytest.mark.parametrize("known", [True, False])
def test_the_equations(known: bool) -> None:
    """One round after the other, picture by picture, as the module's text has it."""
    every, pictures, heat = pictures_of([True] * 6)
    uses = torch.tensor([True, True, True, True, False, True])
    boxes = {0: every[0].mask.flatten().float(), 4: torch.zeros(CELLS * CELLS), 5: 0.4 * every[5].mask.flatten()}
    found = fit_direction(pictures, heat, uses, boxes, known=known)

    def scaled(x: np.ndarray) -> np.ndarray:
        return (x - x.min()) / (x.max() - x.min())

    def spread(i: int, x: np.ndarray) -> np.ndarray:
        places = pooled(every[i].lesson.places.double() / 127, (CELLS, CELLS)).flatten(1).T.numpy()
        places /= np.linalg.norm(places, axis=1, keepdims=True)
        alike = places @ places.T
        np.fill_diagonal(alike, 1)
        alike = (alike - 0.2).clip(0)
        return scaled(0.8 * scaled(alike @ x / alike.sum(axis=1)) + 0.2 * x)

    z, text = pictures.whitened.double().numpy(), [scaled(one.double().numpy()) for one in heat]
    maps = [spread(i, one) if known else np.zeros(CELLS * CELLS) for i, one in enumerate(text)]
    of_text = 0.5 * 40 / 43 if known else 0.0
    for number in range(4):
        hot, cold = [], []
        for i in range(6):
            weight = 1.5  # of three that are reviewed
            if i in boxes:
                mask = boxes[i].numpy()
                warm = (mask > 0.5 * mask.max()) * np.maximum(maps[i], 0.1) ** 2
                chill = (mask < 0.05).astype(float)
            else:
                warm, chill = (maps[i] > 0.6).astype(float), (maps[i] < 0.2).astype(float)
                weight = float(uses[i]) * (1.0 if known else 3.0 * 3 / 6 if number else 0.0)
            for places, mean in ((warm, hot), (chill, cold)):
                if places.sum() > (0.002 if mean is hot else 4) and weight:
                    mean.append((weight, places @ z[i] / places.sum()))
        f, b = (sum(w * m for w, m in some) / sum(w for w, _ in some) for some in (hot, cold))
        w = f - b
        like = ((z - (f + b) / 2) @ w / (w @ w) + 0.5).clip(0, 1)
        maps = [spread(i, scaled(of_text * text[i] + (1 - of_text) * like[i])) for i in range(6)]
    np.testing.assert_allclose(found.direction(pictures.whitened).numpy(), like, atol=2e-4)
    np.testing.assert_allclose(found.maps.numpy(), np.stack(maps), atol=2e-3)


def test_a_folders_widest_directions_are_kept_and_hold_in_the_features_too() -> None:
    rng = np.random.default_rng(0)
    frame = planted(0).lesson.frame
    spread = torch.linspace(3, 0.1, 40)[:, None, None]
    maps = [torch.from_numpy(rng.normal(1, 1, (40, 7, 8))).float() * spread for _ in range(3)]  # few enough: all count
    lessons = [keep([0], torch.zeros(1, 7, 8), one, one, torch.zeros(8), frame) for one in maps]
    whitening, readings = Whitening.of(lessons), torch.cat([one.readings() for one in lessons])
    widest = np.linalg.eigvalsh(np.cov(readings.double().T.numpy()))[-32:]
    whitened = whitening(readings)
    np.testing.assert_allclose(whitened.mean(dim=0), np.zeros(32), atol=1e-5)
    np.testing.assert_allclose(torch.cov(whitened.T), np.diag(widest / (widest + widest.mean())), atol=1e-4)
    large = [planted(i).lesson for i in range(3)]  # some of their places count, the same each time
    assert torch.equal(Whitening.of(large).matrix, Whitening.of(large).matrix)
    direction = Direction(torch.from_numpy(rng.normal(size=32)).float(), 0.3)
    like = projected(*whitening.unwhitened([direction]), lessons[0].maps_of_features())
    np.testing.assert_allclose(like.flatten(), direction(whitening(lessons[0].readings())), atol=1e-4)
    assert (float(like.min()), float(like.max())) == (0, 1)


def test_leaving_a_reviewed_picture_out_is_to_fit_without_its_boxes() -> None:
    every, pictures, heat = pictures_of([False] + [True] * 11)
    uses = torch.ones(12, dtype=torch.bool)
    boxes = {i: every[i].mask.flatten().float() for i in range(3)}
    found = fit_direction(pictures, torch.zeros_like(heat), uses, boxes, known=False)
    left_out = found.without(0, pictures, used=True)
    # Picture 0 shows another thing. Without it the direction is more like that of the others.
    alone = fit_direction(pictures, torch.zeros_like(heat), uses, {1: boxes[1], 2: boxes[2]}, known=False).direction
    near = torch.nn.functional.cosine_similarity
    assert near(left_out.w, alone.w, dim=0) > near(found.direction.w, alone.w, dim=0)
    # Of a name that the model knows, it counts by its map where it is used, as a picture that nobody has reviewed.
    found = fit_direction(pictures, heat, uses, boxes, known=True)
    for used in (True, False):
        means = []
        for mean, weight, places in (
            (found.hot, found.hot_weight, found.maps[0] > 0.6),
            (found.cold, found.cold_weight, found.maps[0] < 0.2),
        ):
            own = used * pictures.whitened[0, places].mean(dim=0)
            means.append((own + weight[1:] @ mean[1:]) / (used + weight[1:].sum()))
        w = means[0] - means[1]
        torch.testing.assert_close(found.without(0, pictures, used).w, w / (w @ w), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("alike", "low", "high"), [(True, 0.9, 1.0), (False, -0.2, 0.4)])
def test_halves_teach_the_same_only_where_the_thing_is_the_same(alike: bool, low: float, high: float) -> None:
    _, pictures, heat = pictures_of([not alike] * 2 + [alike] * 20)
    assert low <= stability(pictures, heat, torch.arange(22) >= 2) <= high
    for fewer in (19, 0):
        assert stability(pictures, heat, torch.arange(22) < fewer) == 0


# -------------------------------------------------------------------------------------------------------------- lessons
@pytest.mark.parametrize("options", [{}, {"resize": "pad"}], ids=["squashed", "padded"])
def test_a_map_drawn_from_a_lesson_is_the_runs_with_windows(options: dict[str, str]) -> None:
    localizer = Localizer("mini", device="cpu", scales=(1.43,), windows=(2,), **options)
    request = Request("dogs", PHOTOS / "dogs.jpg", ["dog"])
    [result] = localizer.run([request], lessons=True)
    found, lesson = result.found[localizer.method.name], result.lesson
    assert lesson is not None
    teaching, grid = localizer.teaching(), lesson.features.shape[-2:]
    [again] = drawn([lesson], lesson.names, torch.zeros(1, 1, *grid), [1.0], teaching["level"], WINDOWS_CUT)
    np.testing.assert_allclose(again.numpy(), found.maps, atol=0.06)  # eight bits of the directions
    assert float((again - torch.from_numpy(found.maps)).abs().mean()) < 0.01


def test_pictures_that_are_drawn_together_get_the_maps_of_each_alone() -> None:
    lessons = [planted(i).lesson for i in range(5)]
    projected = torch.rand(5, 1, *lessons[0].features.shape[-2:], generator=torch.Generator().manual_seed(0))
    together = [*drawn(lessons, [0], projected, [0.3], 0.5)]
    for i, maps in enumerate(together):
        [alone] = drawn(lessons[i : i + 1], [0], projected[i : i + 1], [0.3], 0.5)
        assert torch.equal(maps, alone)
    assert not torch.equal(together[0], together[1])


def test_methods_and_steps_that_cannot_be_drawn_again_are_named() -> None:
    assert Localizer("mini", device="cpu").unteachable_reason() is None
    guided = Localizer("mini", device="cpu", refine=["affinity", "guided"])
    assert guided.unteachable_reason() == "the refinement guided"
    blind = Localizer("mini", device="cpu", method="centre_gaussian")
    assert "same for every picture" in str(blind.unteachable_reason())


def test_lessons_come_back_as_they_were() -> None:
    for number in range(2):
        one = planted(number).lesson
        again = unpacked(packed(one, ["thing"]), ["thing"])
        assert (again.frame, again.names) == (one.frame, one.names)
        assert again.scale == pytest.approx(one.scale, rel=1e-6)
        for key in ("heat", "places", "features", "embedding"):
            assert torch.equal(getattr(again, key), getattr(one, key)), key
        assert packed(again, ["thing"]) == packed(one, ["thing"])


def test_features_are_kept_in_eight_bits_and_wide_ones_are_narrowed() -> None:
    rng = torch.Generator().manual_seed(0)
    wide = torch.randn(1024, 24, 24, generator=rng)
    frame = planted(0).lesson.frame
    one = keep([], wide[:0], wide, wide, torch.zeros(4), frame)
    assert len(one.places) == MOST_OF_PLACES
    assert len(one.features) == MOST_CHANNELS
    assert one.features.shape[-2] * one.features.shape[-1] <= MOST_CELLS
    exact = taught_features(wide).flatten(1).T
    assert float((one.readings() - exact).abs().max()) <= 0.51 * one.scale
    # Products between places stay nearly the same.
    places = torch.nn.functional.normalize(wide.flatten(1), dim=0)
    before, after = places.T @ places, narrowed(places[:, None], MOST_CHANNELS)[:, 0].T
    assert float((after @ after.T - before).abs().mean()) < 0.06
