"""The protocol to the digit: label maps equal those of plain loops pixel by pixel, and so does mIoU."""

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cliploc.errors import UsageError
from cliploc.evaluate.metrics import MeanIoU
from cliploc.find.segmentation.protocol import Protocol, classes_of, protocol_for, protocol_names, protocol_of
from cliploc.find.segmentation.segmenter import Segmenter, label_map, resized_hw
from cliploc.localizer import Localizer
from cliploc.methods import Context, methods
from cliploc.options import SegmentationOptions
from cliploc.refine import Refinement
from cliploc.towers.tower import Needs
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
