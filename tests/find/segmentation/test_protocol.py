"""The protocol to the digit: label maps equal those of plain loops pixel by pixel, and so does mIoU."""

import re
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch.nn import functional as F

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.metrics import MeanIoU
from cliploc.find.segmentation import segmenter as propagation
from cliploc.find.segmentation.protocol import Protocol, classes_of, protocol_for, protocol_names, protocol_of
from cliploc.find.segmentation.regions import ColourRegions, FileRegions, voted
from cliploc.find.segmentation.segmenter import Segmenter, alike, label_map, propagated, resized_hw, solved
from cliploc.images.reading import load, read_labels
from cliploc.localizer import Localizer
from cliploc.methods import Context, methods
from cliploc.options import SegmentationOptions
from cliploc.refine import Refinement
from cliploc.support.reporter import SILENT
from cliploc.towers.tower import Needs
from tests.commands import COFFEE, create_once, document_of
from tests.find.segmentation import plain
from tests.tolerances import assert_same_choice

SIZES = [(181, 147), (131, 160)]  # odd, one upright
METHODS = ("maskclip", "clearclip", "sclip")
BASE = Protocol("test", classes_of(plain.CLASSES), background=True, short_side=240)


# Of the authors' configurations, by set: shorter side, window, logit scale, probability threshold, area threshold.
SETS = ("voc21", "voc20", "context60", "context59", "coco_object", "coco_stuff", "cityscapes", "ade20k")
AUTHORS = {  # repository → what most sets have, and the others
    "SCLIP": ((336, 224, 40, 0, 0), {
        "voc21": (336, 224, 65, 0.1, 0.1), "context60": (336, 224, 50, 0.1, 0), "coco_object": (336, 224, 50, 0.1, 0),
        "coco_stuff": (448, 224, 40, 0, 0), "cityscapes": (560, 224, 40, 0, 0)}),
    "NACLIP": ((336, 224, 40, 0, 0), {
        "voc21": (336, 0, 40, 0.1, 0), "voc20": (336, 0, 40, 0, 0), "context60": (336, 224, 40, 0.1, 0),
        "coco_object": (336, 224, 40, 0.1, 0), "cityscapes": (560, 224, 40, 0, 0)}),
    "ProxyCLIP, CorrCLIP": ((336, 336, 40, 0, 0), {
        "voc21": (336, 336, 40, 0.2, 0), "context60": (336, 336, 40, 0.15, 0), "coco_object": (336, 336, 40, 0.25, 0),
        "cityscapes": (448, 224, 40, 0, 0), "ade20k": (448, 336, 40, 0, 0)}),
}  # fmt: skip


def test_the_documents_options_give_the_authors_settings():
    """Every set's row of the table, one column for each repository."""
    page = (Path(__file__).parents[3] / "docs" / "studies" / "published.md").read_text(encoding="utf-8")
    table = page.split("| set | SCLIP | NACLIP | ProxyCLIP, CorrCLIP |\n|---|---|---|---|\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()]
    assert [row[0].strip("`") for row in rows] == list(SETS)
    for column, (usual, of_set) in enumerate(AUTHORS.values(), start=1):
        for row in rows:
            found = re.findall(r"--([a-z-]+) ([0-9.]+)", row[column])
            given = {name.replace("-", "_"): float(value) if "." in value else int(value) for name, value in found}
            p = protocol_of(row[0].strip("`"), SegmentationOptions(**given))
            ours = (p.short_side, p.window, p.logit_scale, p.background_threshold, p.area_threshold)
            assert ours == of_set.get(p.name, usual), (p.name, column)
            assert (p.stride, p.long_side) == (112, 2048)


@pytest.fixture(scope="module")
def model():
    return plain.clip_b16()


@pytest.fixture(scope="module")
def localizer(model):
    return Localizer(plain.adapted(model), method="maskclip", templates="openai-80", batch_size=3)


# logit scale, probability threshold, area threshold, window
RULES = {"threshold": (400.0, 0.4, None, 224), "area": (400.0, 0.25, 0.2, 224), "whole": (40.0, 0.0, None, 0)}


def assert_as_plain_loops(segmenter, pictures, model, **own):
    """Every method's label maps, and the mIoU with true maps at random."""
    random = np.random.default_rng(0)
    truths = [random.choice([0, 1, 2, 3, 255], size=one.size[::-1]) for one in pictures]
    found = [segmenter.label_maps(one) for one in pictures]
    for name in METHODS:
        expected = [plain.label_map(model, one, name, **own) for one in pictures]
        metric = MeanIoU(4)
        for number, (theirs, truth) in enumerate(zip(expected, truths, strict=True)):
            assert_same_choice(found[number][name], theirs)
            metric.update(str(number), found[number][name], truth)
        ours = [one[name] for one in found]
        assert metric.compute().miou == pytest.approx(plain.mean_iou(ours, truths, 4), abs=1e-9)
        assert len({label for one in expected for label in np.unique(one)}) > 1  # the maps say something


@pytest.mark.parametrize("rule", RULES)
def test_label_maps_and_miou_are_those_of_plain_loops(rule, model, localizer):
    scale, probability, area, window = RULES[rule]
    given = {"logit_scale": scale, "background_threshold": probability, "area_threshold": area or 0, "window": window}
    protocol = replace(BASE, **given, position_rule="antialiased" if window else "dino")
    own = {"short_side": 240, "logit_scale": scale, "prob_thd": probability, "area_thd": area, "window": window}
    segmenter = Segmenter(localizer, protocol, {name: {} for name in METHODS})
    assert_as_plain_loops(segmenter, plain.pictures(SIZES), model, **own)


def test_label_maps_do_not_depend_on_how_many_queries_are_in_memory(localizer, monkeypatch):
    (picture,) = plain.pictures(SIZES[:1])
    protocol = replace(BASE, logit_scale=400.0, background_threshold=0.4, area_threshold=0.1)
    segmenter = Segmenter(localizer, protocol, {"maskclip": {}})
    whole = segmenter.label_maps(picture)["maskclip"]
    monkeypatch.setattr("cliploc.find.segmentation.segmenter.VALUES", 1)
    assert_same_choice(segmenter.label_maps(picture)["maskclip"], whole)


@given(st.integers(1, 6), st.integers(1, 4), st.floats(1, 60), st.floats(0, 0.9), st.floats(0, 0.5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_running_maximum_is_the_softmax_over_all_queries(queries, classes, scale, threshold, area, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(queries + classes, 5, 7, generator=generator)
    extra = torch.randint(0, classes, (queries,), generator=generator)
    class_of = torch.cat([torch.arange(classes), extra]).sort().values
    protocol = replace(BASE, logit_scale=scale, background_threshold=threshold, area_threshold=area)
    found = label_map(lambda start, end: maps[start:end], class_of, (5, 7), protocol)
    p = (scale * maps).softmax(dim=0)
    of_class = torch.stack([p[class_of == label].amax(dim=0) for label in range(classes)])
    if area > 0:
        counts = torch.bincount(of_class.argmax(dim=0).flatten(), minlength=classes)[1:]
        of_class[1:] *= (counts > area * counts.sum())[:, None, None]
    expected = torch.where(of_class.amax(dim=0) < threshold, 0, of_class.argmax(dim=0))
    assert (found == expected.numpy()).mean() > 0.97  # a rounding at the threshold


@pytest.mark.parametrize("at_once", [1, 2**23])
def test_of_equal_queries_the_first_wins(at_once, monkeypatch):
    monkeypatch.setattr("cliploc.find.segmentation.segmenter.VALUES", at_once)
    maps = torch.ones(3, 1, 2)
    found = label_map(lambda start, end: maps[start:end], torch.arange(1, 4), (1, 2), BASE)
    assert found.tolist() == [[1, 1]]


def step(function, on, towers=("vit",)):
    """A refinement that does this."""
    facts = {"title": "", "paper": "", "towers": frozenset(towers), "threshold": lambda _, tau: tau, "package": None}
    needs = Needs(features=(-1,)) if on == "grid" else None
    return Refinement("own", function, on=on, needs=lambda _: needs, **facts)


def test_a_step_scales_each_window_by_itself(model):
    (picture,) = plain.pictures(SIZES[:1])
    waves, found = step(lambda _, maps: (20 * maps).sin(), "grid"), []
    for at_once in (1, 3):
        bare = Localizer(plain.adapted(model), method="maskclip", templates="openai-80", batch_size=at_once)
        segmenter = Segmenter(bare, BASE, {"maskclip": {}})
        segmenter._on_grid = (waves,)
        found.append(segmenter.label_maps(picture)["maskclip"])
    assert_same_choice(*found)


def test_a_picture_is_resized_as_mmcv_does_it():
    for hw, resized in (((500, 333), (505, 336)), ((333, 500), (336, 505)), ((300, 4000), (154, 2048))):
        assert resized_hw(hw, protocol_of("voc21")) == resized


def test_methods_whose_maps_are_cosines_say_so(localizer):
    """Bounded by 1 and linear in the text; whoever reads by `dense_cosine` alone declares it."""
    assert {one.name for one in methods if one.cosines} >= {"maskclip", "sclip", "clearclip", "naclip", "gem"}
    backbone = localizer.backbone
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for method in (one for one in methods if one.cosines and not one.needs().guide):
        task = localizer.flow.tasks.of([method.name])[method.name]
        trace = backbone.trace(images, task.needs)
        text = torch.nn.functional.normalize(torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
        both = method.function(Context(lambda: images, text.expand(2, -1, -1), trace, backbone))
        assert both.abs().max() <= 1 + 1e-5
        mixed = (0.6 * text[:, :1] - 0.3 * text[:, 1:]).expand(2, -1, -1)
        one = method.function(Context(lambda: images, mixed, trace, backbone))
        torch.testing.assert_close(one, 0.6 * both[:, :1] - 0.3 * both[:, 1:], atol=1e-5, rtol=1e-4)


def test_position_embeddings_as_dino_resizes_them(model):
    backbone = plain.adapted(model)
    dino = backbone.with_positions("dino")
    assert dino.weights_id != backbone.weights_id
    image = torch.randn(1, 3, 160, 256, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(dino.embed(image), backbone.embed(image))
    square = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dino.embed(square), backbone.embed(square))
    assert backbone.position_rule == "antialiased"


def test_options_replace_what_the_set_has_and_nothing_else():
    second = {
        "short_side": 448, "window": 0, "stride": 56, "logit_scale": 65.0, "background_threshold": 0.2,
        "area_threshold": 0.1, "position_rule": "dino", "regions": "colour", "propagation": "tlp",
        "candidates": 5,
    }  # fmt: skip
    assert second.keys() == {one.name for one in fields(SegmentationOptions)}
    own = protocol_of("voc21")
    for name, value in second.items():
        changed = protocol_of("voc21", SegmentationOptions(**{name: value}))
        one, other = own.describe().items(), changed.describe().items()
        assert {key for key, value in other if (key, value) not in one} == {name}
    for name in protocol_names():
        assert protocol_of(name).describe().keys() == own.describe().keys()
    assert protocol_of("voc21", SegmentationOptions(window=112)).stride == 112  # windows side by side
    assert protocol_of("ade847").short_side == 448


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("voc20", {"background_threshold": 0.1}, "voc20 has no background, but --background-threshold needs one"),
        ("imagenet_seg", {"stride": 56}, "imagenet_seg has one window and one name: leave --stride out"),
        ("voc21", {"window": 64}, "expected --stride of at most 64, the side of a window, got 112, which"),
        ("voc", {}, "expected the segmentation set to be one of ade20k, ade847, cityscapes"),
    ],
)
def test_errors_of_options(name, options, error):
    with pytest.raises(UsageError, match=error):
        protocol_of(name, SegmentationOptions(**options))
    with pytest.raises(UsageError, match="expected stride, a whole number from 1"):
        SegmentationOptions(stride=0)


@pytest.mark.parametrize("window", [0, 112])
def test_candidates_are_the_classes_that_fit_a_window_best(localizer, window):
    """The label map is that of a protocol with these classes alone."""
    picture = plain.pictures([(150, 190)] * 8)[7]  # windows fit the background least; in their mean other classes lead
    protocol = replace(BASE, short_side=150, window=window, stride=56, background_threshold=0.02)
    segmenter = Segmenter(localizer, replace(protocol, candidates=2), {"maskclip": {}})
    images = segmenter._input(picture)
    corners = [(y, x) for y in (0, 56, 78) for x in (0, 38)] if window else [(0, 0)]
    side = (112, 112) if window else (176, 144)  # whole cells of 16 pixels
    crops = torch.cat([images[..., y : y + side[0], x : x + side[1]] for y, x in corners])
    embeddings = localizer.backbone.encode_image(crops)
    fit = {}
    for label, of in enumerate(BASE.classes):
        words = localizer.embed_names(list(of.synonyms))
        fit[label] = float((embeddings @ words.T).max())
    best = sorted(fit, key=lambda label: -fit[label] if label else -np.inf)[:3]
    kept = sorted(best)
    found = segmenter.label_maps(picture)["maskclip"]
    alone = replace(protocol, classes=tuple(BASE.classes[label] for label in kept))
    wanted = np.array(kept)[Segmenter(localizer, alone, {"maskclip": {}}).label_maps(picture)["maskclip"]]
    assert_same_choice(found, wanted)
    assert len(BASE.classes) > 3


def test_a_method_that_reads_no_text_is_refused(localizer):
    with pytest.raises(UsageError, match="raw_attention has the same map for every name"):
        Segmenter(localizer, BASE, {"raw_attention": {}})


def test_names_that_the_model_cannot_know_are_never_predicted():
    localizer = Localizer("mini", method="cam")
    protocol = replace(BASE, classes=classes_of(["cat", "qqqq", "dog, zzzz"]), short_side=64, window=64, stride=32)
    segmenter = Segmenter(localizer, protocol, {"cam": {}})
    assert segmenter.classes == {0, 2}
    assert set(segmenter.unknown) == {"qqqq", "zzzz"}
    (picture,) = plain.pictures([(90, 70)])
    assert 1 not in segmenter.label_maps(picture)["cam"]
    with pytest.raises(UsageError, match="expected a class that mini knows"):
        Segmenter(localizer, replace(protocol, classes=classes_of(["qqqq"])), {"cam": {}})


def test_a_label_map_holds_as_many_names_as_are_taken():
    names = [f"name {number}" for number in range(2**15)]
    with pytest.raises(UsageError, match=r"expected at most 32,767 names, got 32,768: split them into several runs"):
        protocol_for(names)
    protocol = protocol_for(names[:-1])
    maps = torch.zeros(len(names) - 1, 1, 2)
    maps[-1, 0, 1] = 1
    labels = torch.arange(1, len(names))
    found = label_map(lambda start, end: maps[start:end], labels, (1, 2), protocol)
    assert found.tolist() == [[1, 2**15 - 1]]


@pytest.mark.parametrize(
    ("picture", "methods", "regions"),
    [
        (np.zeros((40, 60, 3), np.uint8), None, None),
        (Image.new("RGB", (60, 40)), ["gem"], None),
        (Image.new("RGB", (60, 40)), None, np.zeros((60, 40), np.int32)),
    ],
)
def test_what_cannot_be_segmented_is_refused_in_one_line(localizer, picture, methods, regions):
    segmenter = Segmenter(localizer, BASE, {"maskclip": {}})
    with pytest.raises(UsageError, match=r"^expected .*, got [^\n]*$"):
        segmenter.label_maps(picture, methods, regions=regions)


# -------------------------------- Votes of regions against plain loops; TLP against its linear system as a dense matrix
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
