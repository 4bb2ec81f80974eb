"""What every refinement must hold behind the `Localizer`; parametrised over the registry."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cliploc.refine
from cliploc.errors import UsageError
from cliploc.localizer import Localizer
from cliploc.refine import refinements
from tests.test_localizer import PHOTOS, TALL, TERMS, WIDE, photo, same
from tests.tiny import KINDS, Counting, give_function, tower
from tests.tolerances import assert_rounded

BACKBONES = {kind: tower(kind, (8, 8)) for kind in KINDS}
SHARPENED = 40  # a slip in a query or key is enlarged as much
BACKBONES["vit"].blocks[0].qkv.weight[:32, :14] *= SHARPENED  # else its patches attend to all others nearly alike
CASES = [(r.name, kind) for r in refinements for kind in KINDS if BACKBONES[kind].kind in r.towers]
every_case = pytest.mark.parametrize(("name", "kind"), CASES)
NAMES = ["red", "blue", "a zebra"]


def build(kind, refine=(), **options):
    method = {"vit": "grad_cam"}.get(kind, "cam")
    arguments = {"method": method, "templates": "a {} thing", "threshold": 0.5, "refine": refine, **options}
    return Localizer(BACKBONES[kind], **arguments)


def test_every_public_file_is_a_registered_refinement():
    files = {path.stem for path in Path(cliploc.refine.__file__).parent.glob("*.py") if not path.stem.startswith("_")}
    assert files == set(refinements.names())


@every_case
def test_maps_keep_their_shape_and_range_and_change(name, kind):
    changes = []
    for result, plain in zip(build(kind, [name])(PHOTOS, NAMES), build(kind)(PHOTOS, NAMES), strict=True):
        assert result.heatmaps.shape == plain.heatmaps.shape
        if refinements.get(name).on == "grid":
            assert result.maps.shape == plain.maps.shape
            assert result.frame == plain.frame
        else:
            assert result.maps.shape[1:] == (result.image.height, result.image.width)
        assert result.maps.dtype == np.float32
        for heat, before in zip(result.maps, plain.maps, strict=True):
            assert heat.min() == 0
            assert heat.max() == pytest.approx(1, abs=1e-6) or before.max() == 0
        for heat, before in zip(result.heatmaps, plain.heatmaps, strict=True):
            if before.max() > 0:
                changes.append(np.abs(heat - before).max())
        assert_rounded(result.scores, plain.scores, TERMS, 1)  # rounded otherwise where attention is kept
    assert (max if name == "level" else min)(changes) > 1e-4  # a map that has its level already stays


@every_case
def test_a_planted_colour_is_still_found(name, kind):
    box = [36, 16, 60, 32]
    found = build(kind, [name])(photo((96, 64), red=box), ["red"])
    y, x = np.unravel_index(found.heatmaps[0].argmax(), (64, 96))
    assert box[0] - 4 <= x <= box[2] + 4
    assert box[1] - 4 <= y <= box[3] + 4


@pytest.mark.parametrize(
    ("name", "kind", "views"),
    [(*case, {"scales": (1, 1.5), "flip": True, "resize": "pad"}) for case in CASES]
    + [(*case, {}) for case in CASES if case[1] == "vit"],  # one view: every step is defined on it
)
def test_batches_and_prompts_do_not_matter(name, kind, views):
    pictures = PHOTOS[:3]  # of three shapes; the others are the same mirrored
    together = build(kind, [name], batch_size=3, **views)(pictures, NAMES)
    alone = build(kind, [name], batch_size=1, **views)
    for result, picture in zip(together, pictures, strict=True):
        same(alone(picture, NAMES), result, SHARPENED)
    for p, one in enumerate(NAMES):
        assert_rounded(alone(pictures[0], [one]).maps[0], together[0].maps[p], TERMS, SHARPENED)


@every_case
def test_a_mirrored_picture_has_the_mirrored_map(name, kind):
    localizer = build(kind, [name], flip=True)  # a tower with positions is not symmetrical itself
    maps, mirrored = localizer(WIDE, NAMES).maps, localizer(WIDE[:, ::-1].copy(), NAMES).maps
    np.testing.assert_allclose(mirrored[..., ::-1], maps, atol=1e-3)


@every_case
def test_padding_stays_cold_and_a_flat_map_stays_flat(name, kind):
    found = build(kind, [name], resize="pad")(WIDE, ["red"])
    _, y0, _, y1 = found.frame.visible_xyxy
    assert (y0 > 0) == (refinements.get(name).on == "grid"), "over the picture there is no padding"
    if not y0:
        return
    outside = np.concatenate([found.maps[0, :y0], found.maps[0, y1:]])
    assert (outside <= found.maps[0, y0:y1].min() + 1e-6).all()
    localizer = build(kind, [name], min_presence=0)
    give_function(localizer, lambda ctx: torch.zeros(len(ctx.text), ctx.text.shape[1], *ctx.trace.grid))
    flat = localizer(WIDE, ["red"])
    assert (flat.maps == 0).all()
    assert "finds no evidence for it: its map is flat" in flat.reasons[0]


@pytest.mark.parametrize("kind", ["gap_cnn", "vit"])
def test_steps_follow_each_other_and_cost_no_forward(kind):
    backbone = Counting(BACKBONES[kind])
    steps = [r.name for r in refinements if backbone.kind in r.towers]
    options = {"method": "grad_cam", "templates": "a {} thing"}
    localizer = Localizer(backbone, refine=steps, **options)
    result = localizer(TALL, ["red"])
    assert (backbone.traces, backbone.images) == (1, 0)
    assert [refinements.get(step).on for step in localizer.refine] == sorted(refinements.get(s).on for s in steps)
    pictures_first = sorted(steps, key=lambda step: refinements.get(step).on, reverse=True)
    same(Localizer(backbone, refine=pictures_first, **options)(TALL, ["red"]), result)
    shared = next(localizer.compare([TALL], ["red"], ["grad_cam", "score_cam"]))
    same(shared["grad_cam"], result)


@pytest.mark.parametrize(
    ("kind", "method", "refine", "after"),
    [
        ("gap_cnn", "cam", [], 0.3), ("gap_cnn", "cam", ["affinity"], 0.5), ("gap_cnn", "cam", ["guided"], 0.5),
        ("gap_cnn", "cam", ["affinity", "guided"], 0.5), ("gap_cnn", "grad_cam", ["affinity"], 0.2),
        ("gap_cnn", "layer_cam", ["guided"], 1 - 0.75**2), ("vit", "naclip", ["affinity"], 0.6),
        ("vit", "naclip", ["guided"], 0.6),
    ],
)  # fmt: skip
def test_boxes_have_the_threshold_that_was_chosen_for_the_tower(kind, method, refine, after):
    assert build(kind, refine, method=method, threshold=None).box_rule.threshold == pytest.approx(after)
    assert build(kind, refine, method=method, threshold=0.4).box_rule.threshold == 0.4


def test_the_wrong_tower_is_refused_before_anything_runs():
    with pytest.raises(UsageError) as error:
        build("gap_cnn", ["caa"])
    others = ", ".join(name for name in refinements.names() if name != "caa")
    assert str(error.value) == f"caa does not work on gap_cnn, a cnn tower: use one of {others}"


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(UsageError) as error:
        build("gap_cnn", ["lposs_plus"])
    assert str(error.value) == "lposs_plus needs kornia: pip install 'cliploc[refine]'"
