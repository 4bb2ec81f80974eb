"""What is kept of a picture gives the same maps as the run, up to eight bits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cliploc import Localizer
from cliploc.errors import UsageError
from cliploc.jobs.lessons import SEVERAL, Lessons, are_whole, lessons_path, packed
from cliploc.pipeline.prepare import Request
from cliploc.refine.affinity import WINDOWS_CUT
from cliploc.teaching.learnt import drawn
from cliploc.teaching.lesson import MOST_CELLS, MOST_CHANNELS, MOST_OF_PLACES, keep, narrowed, pooled, taught_features
from tests.commands import PHOTOS
from tests.teaching.planted import planted


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


def test_lessons_come_back_from_the_disk_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    lessons = {("a.png", "aa"): planted(0).lesson, ("sub/ü.png", "bb"): planted(1).lesson}
    lessons_path(tmp_path, 0).write_bytes(packed(lessons))
    old = {("a.png", "another file"): planted(7).lesson}
    lessons_path(tmp_path, 1).write_bytes(packed(old))
    many = {(f"{i}.png", "cc"): planted(i).lesson for i in range(SEVERAL)}
    lessons_path(tmp_path, 2).write_bytes(packed(many))
    every = {**lessons, **many}
    read = Lessons(tmp_path, dict([*every]))
    read_together = read.each([picture for picture, _ in every])
    pairs = [(read.of(picture), one) for (picture, _), one in every.items()]
    for again, one in [*pairs, *zip(read_together, every.values(), strict=True)]:
        assert (again.frame, again.names) == (one.frame, one.names)
        assert again.scale == pytest.approx(one.scale, rel=1e-6)
        for key in ("heat", "places", "features", "embedding"):
            assert torch.equal(getattr(again, key), getattr(one, key)), key
    mapped = Path("/proc/self/maps")  # on Linux
    assert not mapped.exists() or str(tmp_path) not in mapped.read_text(), "600 lessons would keep all parts in memory"
    assert packed(lessons) == packed(lessons)


@pytest.mark.parametrize("count", [1, SEVERAL])
def test_a_lesson_with_another_bit_is_refused_and_one_that_is_not_there(tmp_path: Path, count: int) -> None:
    (tmp_path / "parts").mkdir()
    lessons, path = {(f"{i}.png", "aa"): planted(i).lesson for i in range(count)}, lessons_path(tmp_path, 0)
    whole = packed(lessons)
    path.write_bytes(whole)
    assert are_whole(tmp_path, 0)
    read = Lessons(tmp_path, dict([*lessons]))
    with pytest.raises(UsageError, match="annotate"):
        Lessons(tmp_path, {"x.png": "aa"})
    place = whole.index(lessons["0.png", "aa"].features.numpy().tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert not are_whole(tmp_path, 0)
    with pytest.raises(UsageError, match="is damaged"):
        read.each([picture for picture, _ in lessons])


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


def test_pooling_keeps_the_mean() -> None:
    maps = torch.arange(64.0).view(1, 8, 8)
    assert float(pooled(maps, (4, 4)).mean()) == pytest.approx(31.5)
    assert pooled(maps, (8, 8)) is maps
