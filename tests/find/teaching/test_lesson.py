"""What is kept of a picture gives the same maps as the run, up to eight bits."""

import numpy as np
import pytest
import torch

from cliploc import Localizer
from cliploc.find.learnt import MOST_CELLS, MOST_CHANNELS, MOST_OF_PLACES, drawn, keep, narrowed, taught_features
from cliploc.find.prepare import Request
from cliploc.label.teach.lessons import packed, unpacked
from cliploc.refine.affinity import WINDOWS_CUT
from tests.commands import PHOTOS
from tests.find.teaching.planted import planted


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
        again = unpacked(packed(one))
        assert (again.frame, again.names) == (one.frame, one.names)
        assert again.scale == pytest.approx(one.scale, rel=1e-6)
        for key in ("heat", "places", "features", "embedding"):
            assert torch.equal(getattr(again, key), getattr(one, key)), key
        assert packed(again) == packed(one)


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
