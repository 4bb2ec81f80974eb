"""Votes of regions against plain loops; TLP against its linear system as a dense matrix."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch.nn import functional as F

from cliploc.errors import InputError, UsageError
from cliploc.find.segmentation import segmenter as propagation
from cliploc.find.segmentation.protocol import protocol_for
from cliploc.find.segmentation.regions import ColourRegions, FileRegions, voted
from cliploc.find.segmentation.segmenter import Segmenter, alike, propagated, solved
from cliploc.images.reading import load, read_labels
from cliploc.localizer import Localizer
from cliploc.options import SegmentationOptions
from cliploc.support.reporter import SILENT
from tests.commands import COFFEE, create_once, document_of

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
ASKED = ("-p", "cup", "-p", "spoon", "--background", "table", "--window", "0", "--template", "name-only")


@given(SHAPES.flatmap(lambda hw: st.tuples(hnp.arrays(np.int16, hw, elements=st.integers(0, 3)),
                                           hnp.arrays(np.int32, hw, elements=st.integers(-1, 3)))))  # fmt: skip
def test_a_region_gets_the_label_that_most_of_its_pixels_have(maps):
    labels, regions = maps
    after = voted(labels, regions)
    assert after.dtype == labels.dtype
    for place in np.ndindex(labels.shape):
        if regions[place] < 0:
            assert after[place] == labels[place]
            continue
        votes = labels[regions == regions[place]].tolist()
        assert after[place] == min(set(votes), key=lambda label: (-votes.count(label), label))


def test_regions_of_colour_are_the_parts_of_a_picture():
    pytest.importorskip("sklearn")
    colours = np.array([[(200, 30, 30), (30, 160, 40)], [(30, 40, 200), (230, 230, 220)]])
    pixels = colours.repeat(100, axis=0).repeat(128, axis=1) + np.random.default_rng(0).normal(0, 9, (200, 256, 3))
    regions = ColourRegions(4)(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    assert regions.shape == (200, 256)
    parts = [regions[:98, :126], regions[:98, 130:], regions[102:, :126], regions[102:, 130:]]
    assert [len(np.unique(part)) for part in parts] == [1] * 4
    assert len({int(part[0, 0]) for part in parts}) == 4


@pytest.mark.parametrize("size_wh", [(1, 1), (3, 200), (700, 5), (5, 5)])
def test_any_picture_has_regions_of_colour(size_wh):
    pytest.importorskip("sklearn")
    pixels = np.random.default_rng(0).integers(0, 256, (*size_wh[::-1], 3), np.uint8)
    regions = ColourRegions()(Image.fromarray(pixels))
    assert regions.shape == size_wh[::-1]
    assert regions.min() == 0
    assert regions.max() < max(24, size_wh[0] * size_wh[1])


def test_the_command_line_and_callers_with_own_regions_get_the_vote(tmp_path):
    pytest.importorskip("sklearn")
    picture = load(COFFEE).image
    localizer = Localizer(create_once("mini", None, "cpu", precision="fp32"), method="cam", templates="name-only")
    protocol = protocol_for(["cup", "spoon"], ["table"], SegmentationOptions(window=0))
    segmenter = Segmenter(localizer, protocol, {"cam": {}})
    assert protocol.regions == "none"
    plain, regions = segmenter.label_maps(picture)["cam"], ColourRegions()(picture)
    assert (segmenter.label_maps(picture, regions=regions)["cam"] == voted(plain, regions)).all()
    document = document_of("segment", COFFEE, *ASKED, "--regions", "colour", "--out", tmp_path)
    with Image.open(tmp_path / document["pictures"][0]["label_map"]) as written:
        assert (np.asarray(written) == voted(plain, regions)).all()
    assert (voted(plain, regions) != plain).any()
    assert document["settings"]["protocol"]["regions"] == "colour"
    assert "regions" not in protocol.describe()


@pytest.fixture
def halves(tmp_path):
    """A folder with the regions of the photograph: none, left, right."""
    (tmp_path / "regions").mkdir()
    numbers = np.zeros(load(COFFEE).image.size[::-1], np.uint8)
    numbers[40:, : numbers.shape[1] // 2], numbers[40:, numbers.shape[1] // 2 :] = 1, 9
    Image.fromarray(numbers).save(tmp_path / "regions/coffee.png")
    return tmp_path / "regions"


def test_regions_of_files_vote_and_are_part_of_a_runs_identity(halves, tmp_path):
    maps = []
    for out, more in (("plain", ()), ("ours", ("--regions", f"files:{halves}"))):
        document = document_of("segment", COFFEE, *ASKED, *more, "--out", tmp_path / out)
        maps.append(read_labels(tmp_path / out / document["pictures"][0]["label_map"]))
    regions = read_labels(halves / "coffee.png") - 1
    assert (maps[1] == voted(maps[0], regions)).all()
    assert (maps[1] != maps[0]).any()
    before = FileRegions(halves).id
    Image.fromarray(regions.astype(np.uint8)).save(halves / "coffee.png")
    assert FileRegions(halves).id != before


def raw(segmenter, images, regions=None):
    asked = (segmenter._queries, segmenter._words, segmenter.tasks, SILENT)
    (found,) = segmenter._windows(images, *asked, regions).of.values()
    return found  # [W, Q, h, w]


def segmenter_of(method, **options):
    backbone = create_once("mini-vit", None, "cpu", precision="fp32")
    localizer = Localizer(backbone, method=method, templates="name-only", guide="mini", **options)
    asked = SegmentationOptions(short_side=224, window=192, stride=96)
    return Segmenter(localizer, protocol_for(["cup", "spoon"], ["table"], asked), {method: {}})


def test_corrclip_reads_the_regions_of_each_window():
    segmenter = segmenter_of("corrclip")
    images = segmenter._input(load(COFFEE).image)
    regions = np.random.default_rng(0).integers(-1, 3, (7, 9)).astype(np.int32)
    regions = regions.repeat(32, axis=0).repeat(images.shape[-1] // 9 + 1, axis=1)[:, : images.shape[-1]]
    whole = raw(segmenter, images, regions)
    last = raw(segmenter, images[..., -192:, -192:], regions[-192:, -192:])
    torch.testing.assert_close(whole[-1:], last, rtol=0, atol=1e-5)
    for other in (None, regions[::-1].copy()):
        assert (raw(segmenter, images, other) - whole).abs().max() > 1e-3


def test_gla_clip_sees_all_windows_at_once():
    """By whatever batch size; its maps change where those of methods that see a window each do not."""
    maps = []
    for batch in (1, 8):
        segmenter = segmenter_of("gla_clip", batch_size=batch)
        images = segmenter._input(load(COFFEE).image)
        maps.append(raw(segmenter, images))
    assert len(maps[0]) > 1
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=1e-5)
    assert (raw(segmenter, images[..., :192, :192]) - maps[0][:1]).abs().max() > 1e-3


def test_where_memory_lacks_windows_are_seen_in_halves_and_joined(monkeypatch):
    """Tower and guide see a window at a time, their attention still all of them."""
    segmenter = segmenter_of("gla_clip", batch_size=8)
    images = segmenter._input(load(COFFEE).image)
    expected = raw(segmenter, images)
    seen = []

    def one_at_a_time(own):
        def run(batch, **how):
            seen.append(len(batch))
            if len(batch) > 1:
                raise RuntimeError("out of memory")
            return own(batch, **how)

        return run

    for of, name in ((segmenter.backbone, "trace"), (segmenter.localizer.guide, "features")):
        monkeypatch.setattr(of, name, one_at_a_time(getattr(of, name)))
    torch.testing.assert_close(raw(segmenter, images), expected, rtol=0, atol=1e-5)
    assert max(seen) > 1
    assert seen.count(1) == 2 * len(expected)


def test_what_cannot_be_is_one_line(monkeypatch, halves):
    with pytest.raises(InputError, match=r"^cat: expected its regions at .*cat\.png, found none"):
        FileRegions(halves)(Image.new("RGB", (9, 9)), "cat")
    with pytest.raises(InputError, match=r"expected 9×9 pixels as its picture has, got"):
        FileRegions(halves)(Image.new("RGB", (9, 9)), "coffee")
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UsageError, match=r"^regions of colour needs scikit-learn: pip install 'cliploc\[regions\]'$"):
        ColourRegions()


# ------------------------------------------------------------------------------------------------------------------ TLP
def dense(cosines, grey, weight):
    """The system's matrix `[N, N]` and C `[N]`, cell by cell, in float64."""
    count, height, width = cosines.shape
    p = np.exp(cosines) / np.exp(cosines).sum(axis=0)
    cells = [(y, x) for y in range(height) for x in range(width)]
    at = [p[:, y, x] for y, x in cells]
    trust = np.array([max(one.max(), 0.05) ** 2 * (1 + (one**2 * weight).sum()) for one in at])
    matrix = np.diag(trust)
    steps = {(0, 1): np.abs(np.diff(grey, axis=1)).mean(), (1, 0): np.abs(np.diff(grey, axis=0)).mean()}
    for (y, x), ((dy, dx), mean) in ((cell, one) for cell in cells for one in steps.items()):
        if y + dy < height and x + dx < width:
            gain = 1 + sum(p[q, y, x] * weight[q] * p[q, y + dy, x + dx] for q in range(count))
            edge = abs(grey[y + dy, x + dx] - grey[y, x]) / (mean + 1e-6)
            link = min(1.0, np.exp(-5 * edge) * gain)
            i, j = cells.index((y, x)), cells.index((y + dy, x + dx))
            matrix[i, i] += link
            matrix[j, j] += link
            matrix[i, j] -= link
            matrix[j, i] -= link
    return matrix, trust


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    return random.uniform(0, 0.3, (4, 6, 5)), random.uniform(-1, 1, (6, 5)), random.uniform(0.9, 1, 4)


def as_tensors(*arrays):
    return [torch.tensor(one, dtype=torch.float64) for one in arrays]


def test_the_solution_is_that_of_the_dense_system(case, monkeypatch):
    matrix, trust = dense(*case)
    flat = case[0].reshape(4, -1)
    exact = np.linalg.solve(matrix, (trust * flat).T).T
    monkeypatch.setattr(propagation, "STEPS", 200)
    assert solved(*as_tensors(*case)).reshape(4, -1).numpy() == pytest.approx(exact, abs=1e-5)


def test_25_steps_of_conjugate_gradients_for_all_queries_together():
    random = np.random.default_rng(0)
    case = random.uniform(0, 0.3, (4, 14, 12)), random.uniform(-1, 1, (14, 12)), random.uniform(0.9, 1, 4)
    matrix, trust = dense(*case)
    x = case[0].reshape(4, -1)
    r = trust * x - x @ matrix
    d = r
    for _ in range(25):
        a = (r * r).sum() / ((d @ matrix) * d).sum()
        before, x, old, r = x, x + a * d, r, r - a * (d @ matrix)
        d = r + (r * r).sum() / (old * old).sum() * d
    assert solved(*as_tensors(*case)).reshape(4, -1).numpy() == pytest.approx(x, abs=1e-6)
    assert np.abs(x - before).max() > 1e-5


def test_cells_have_the_means_of_maps_and_of_brightness():
    torch.manual_seed(0)
    picture, maps, queries = torch.rand(1, 3, 50, 90), torch.rand(3, 165, 330), torch.randn(3, 8)
    found = propagated(lambda start, end: maps[start:end], picture, queries, (165, 330), 2**23)
    red, green, blue = F.avg_pool2d(F.interpolate(picture, (165, 330), mode="bilinear"), (2, 4))[0]
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    spread = solved(F.avg_pool2d(maps, (2, 4)), grey, alike(queries))
    torch.testing.assert_close(
        found(0, 3), F.interpolate(spread[None], (165, 330), mode="bilinear")[0], atol=1e-4, rtol=1e-4
    )


def test_a_querys_likeness_to_itself():
    queries = torch.eye(3)[[0, 1, 1]]
    e = np.exp(1 / 0.5)
    expected = [(e / (e + 2) + 10) / 11, *[(e / (2 * e + 1) + 10) / 11] * 2]
    assert alike(5 * queries).tolist() == pytest.approx(expected, abs=1e-6)


def test_blocks_of_queries_change_nothing_and_heat_stays_inside_edges():
    torch.manual_seed(0)
    picture = torch.zeros(1, 3, 165, 200)
    picture[..., 100:] = 1.0
    maps, queries = 0.1 * torch.rand(3, 165, 200), torch.randn(3, 8)
    maps[0, 20:60, 20:60] += 0.2
    found, again = (
        propagated(lambda start, end: maps[start:end], picture, queries, (165, 200), values)(0, 3)
        for values in (2**23, 165 * 200)
    )
    assert found.shape == maps.shape
    torch.testing.assert_close(again, found, atol=1e-6, rtol=0)
    raised = found[0] - F.avg_pool2d(maps[:1], 41, 1, 20)[0].mean()
    assert raised[:, :90].mean() > 2 * raised[:, 110:].mean().abs()
