"""The composition: from pictures and names to maps and boxes in original pixels, on towers with planted colours."""

import copy
import dataclasses
import inspect
import itertools
import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cliploc.errors import InputError, ModelError, UnknownNameError, UsageError
from cliploc.find import texts
from cliploc.find.flow import Flow
from cliploc.find.memory import Memory
from cliploc.find.prepare import DECODERS, Prepared, RunOptions
from cliploc.images.geometry import Frame, iou_matrix
from cliploc.localizer import Localizer
from cliploc.methods.cam import cam
from cliploc.options import POLICIES
from cliploc.support.reporter import Reporter
from cliploc.towers.tower import Needs
from tests.commands import CAT, create_once
from tests.tiny import KINDS, context, default_dtype, give_function, tower
from tests.tolerances import STRETCHED, assert_rounded, terms_of

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TEMPLATE = "a {} thing"


def photo(size_wh, **boxes):
    """Grey, with a rectangle for each colour."""
    pixels = np.full((size_wh[1], size_wh[0], 3), 128, np.uint8)
    for colour, (x0, y0, x1, y1) in boxes.items():
        pixels[y0:y1, x0:x1] = COLOURS[colour]
    return pixels


def build(backbone, **options):
    method = "cam" if backbone.kind == "cnn" else "grad_cam"
    given = {"method": method, "templates": TEMPLATE, "threshold": 0.5, "min_presence": 0, **options}
    return Localizer(backbone, **given)


WIDE = photo((96, 64), red=(36, 16, 60, 32), blue=(72, 40, 88, 60))
TALL = photo((64, 96), red=(16, 40, 40, 64))
SQUARE = photo((80, 80), green=(20, 30, 50, 60))
PHOTOS = [WIDE, TALL, SQUARE, TALL[::-1].copy(), WIDE[:, ::-1].copy()]


TERMS = max(terms_of(tower(kind)) for kind in KINDS)


def same(one, other, scale=STRETCHED):
    assert one.names == other.names
    assert one.frame == other.frame
    assert one.reasons == other.reasons
    assert_rounded(one.scores, other.scores, TERMS, 1)
    assert_rounded(one.maps, other.maps, TERMS, scale)
    np.testing.assert_array_equal(one.found, other.found)
    np.testing.assert_array_equal(one.boxes.label, other.boxes.label)
    np.testing.assert_allclose(one.boxes.xyxy, other.boxes.xyxy, atol=1e-3)
    assert_rounded(one.boxes.score, other.boxes.score, TERMS, scale)
    np.testing.assert_array_equal(np.asarray(one.image), np.asarray(other.image))


# -------------------------------------------------------------------------------------------------------- it finds it
@pytest.mark.parametrize("size_wh", [(96, 64), (64, 96), (80, 80), (150, 100)])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_colour_is_boxed_in_original_pixels(backbones, kind, policy, size_wh):
    width, height = size_wh
    box = [width * 3 // 8, height * 3 // 8, width * 3 // 8 + width // 4, height * 3 // 8 + height // 4]
    for colour in COLOURS:
        found = build(backbones[kind], resize=policy)(photo(size_wh, **{colour: box}), ["red", "green", "blue"])
        assert found.found[found.names.index(colour)]
        best = found.boxes.of(colour)[:1]
        one_cell = np.array([4 / scale for scale in found.frame.scale_xy] * 2)
        assert (np.abs(best - box) <= one_cell).all(), best
        assert iou_matrix(best, [box]).item() >= 0.5
        heatmap = found.heatmaps[found.names.index(colour)]
        assert (heatmap.shape, heatmap.dtype) == ((height, width), np.float32)
        assert 0 <= heatmap.min() < 0.9 < heatmap.max() <= 1
        y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
        assert box[0] - 2 <= x <= box[2] + 1
        assert box[1] - 2 <= y <= box[3] + 1


def test_scores_are_cosines_of_picture_and_prompt(backbones):
    backbone = backbones["gap_cnn"]
    found = build(backbone)(TALL, ["red", "blue|green"])
    pixels = np.asarray(Frame.fit("squash", (96, 64), (32, 32)).apply(Image.fromarray(TALL)))
    image = backbone.encode_image(backbone.normalize(torch.tensor(pixels).permute(2, 0, 1)[None] / 255))
    red, blue, green = backbone.encode_text([f"a {colour} thing" for colour in ("red", "blue", "green")])
    expected = torch.stack([red, F.normalize(blue + green, dim=0)]) @ image[0]
    assert_rounded(found.scores, expected, TERMS, 1)
    assert found.names == ("red", "blue")
    assert found.presence is None


def test_boxes_carry_their_label_and_score_and_come_best_first(backbones):
    picture = photo((96, 96), red=(12, 12, 36, 36), blue=(60, 60, 84, 84))
    picture[60:72, 12:24] = (200, 90, 90)  # a paler red
    found = build(backbones["gap_cnn"], threshold=0.1)(picture, ["blue", "green", "red"])
    assert found.boxes.names == ("blue", "green", "red")
    assert found.found.tolist() == [True, False, True]
    assert len(found.boxes.of("red")) == 2
    red = found.boxes.score[found.boxes.label == 2]
    assert 1 > red[0] > red[1] > 0
    assert len(found.boxes.of("green")) == 0
    one = build(backbones["gap_cnn"], threshold=0.1, max_boxes=1)(picture, ["blue", "green", "red"])
    np.testing.assert_array_equal(one.boxes.xyxy, found.boxes.xyxy[[0, 1]])


def test_heat_of_the_padding_counts_for_nothing(backbones):
    localizer = build(backbones["gap_cnn"], resize="pad")

    def hot_padding(ctx):
        maps = torch.zeros(1, 1, 8, 8)
        maps[..., 0, :], maps[..., 4, 4] = 50, 1
        return maps

    give_function(localizer, hot_padding)
    found = localizer(photo((128, 64)), ["red"])
    assert found.maps[0, :8].max() == found.maps[0, 24:].max() == 0
    assert np.unravel_index(found.maps[0].argmax(), (32, 32))[1] in (17, 18)
    assert iou_matrix(found.boxes.xyxy, [[64, 32, 80, 48]]).item() > 0.5


def test_the_minimum_area_is_a_share_of_the_picture_not_of_its_padding(backbones):
    """In a 6:1 picture laid on a square, 5 % of the input are 30 % of the picture."""
    picture = photo((192, 32), red=(48, 0, 96, 32))  # a quarter of it
    found = build(backbones["gap_cnn"], resize="pad", min_area=0.15, threshold=0.3)(picture, ["red"])
    assert found.found[0], found.reasons
    assert iou_matrix(found.boxes.xyxy, [[48, 0, 96, 32]]).max() > 0.5


# ------------------------------------------------------------------------------------------------------------ batches
@pytest.mark.parametrize("views", [{"scales": (1, 1.5)}, {"windows": (1, 2), "refine": ["affinity"]}], ids=str)
@pytest.mark.parametrize(("kind", "policy"), list(zip(KINDS, POLICIES, strict=True)))
def test_a_batch_is_one_by_one(backbones, kind, policy, views):
    names = ["red", "blue", "something else"]
    localizer = build(backbones[kind], resize=policy, flip=True, batch_size=4, **views)
    for together, picture in zip(localizer(PHOTOS, names), PHOTOS, strict=True):
        same(together, localizer(picture, names))


def test_names_for_each_picture_are_separate_calls_and_no_method_sees_others(backbones):
    names = [["red"], ["blue"], ["green", "red"], ["blue", "green", "red"], ["red"], ["red", "green"]]
    pictures = [*PHOTOS, WIDE]
    localizer = build(backbones["gap_cnn"])
    seen = []

    def spied(ctx):
        seen.append(tuple(ctx.text.shape[:2]))
        return cam(ctx)

    give_function(localizer, spied)
    results = localizer(pictures, names)
    assert seen == [(2, 1), (1, 2), (1, 3), (1, 1), (1, 2)]
    for result, picture, asked in zip(results, pictures, names, strict=True):
        assert result.names == tuple(asked)
        same(result, localizer(picture, asked))


def test_pictures_of_the_inputs_own_shape_are_aligned_at_every_scale():
    """20×24 times 1.3 is rounded to 24×32, another shape: a picture that fits the first is cropped for the second."""
    backbone = tower("gap_cnn", (5, 6))
    localizer = build(backbone, resize="crop", scales=(1, 1.3))
    fits, other = photo((48, 40), red=(4, 4, 16, 16)), photo((64, 40), red=(20, 4, 32, 16))
    same(localizer([fits, other], ["red"])[0], localizer(fits, ["red"]))


# ------------------------------------------------------------------------------------------------- scales and flips
def test_one_scale_is_the_default_and_twice_the_same_is_once(backbones):
    plain = build(backbones["gap_cnn"])(WIDE, ["red"])
    same(build(backbones["gap_cnn"], scales=(1,))(WIDE, ["red"]), plain)
    same(build(backbones["gap_cnn"], scales=(1, 1, 1))(WIDE, ["red"]), plain)


def test_views_are_averaged_after_each_is_scaled_to_0_1(backbones):
    """The stated recipe, by hand: min–max of each view's map on the input, summed, min–max again."""
    backbone = backbones["gap_cnn"]
    total = 0
    for side in (32, 48):
        pixels = torch.tensor(np.asarray(Frame.fit("squash", (64, 96), (side, side)).apply(Image.fromarray(WIDE))))
        images = backbone.normalize(pixels.permute(2, 0, 1)[None] / 255)
        for flip in (False, True):
            view = images.flip(-1) if flip else images
            ctx = context(backbone, view, ["a red thing", "a blue thing"], Needs(features=(-1,)))
            raw = cam(ctx).relu()
            raw = raw.flip(-1) if flip else raw
            heat = F.interpolate(raw, size=(32, 32), mode="bilinear", align_corners=False)[0].numpy()
            low, high = heat.min((1, 2), keepdims=True), heat.max((1, 2), keepdims=True)
            total = total + (heat - low) / (high - low)
    low, high = total.min((1, 2), keepdims=True), total.max((1, 2), keepdims=True)
    found = build(backbone, scales=(1, 1.5), flip=True)(WIDE, ["red", "blue"])
    assert_rounded(found.maps, (total - low) / (high - low), TERMS, STRETCHED)
    plain = build(backbone)(WIDE, ["red", "blue"])
    assert_rounded(found.scores, plain.scores, TERMS, 1)  # of the first view
    assert np.abs(found.maps - plain.maps).max() > 0.05


@pytest.mark.parametrize(
    "views", [{"scales": (1, 1.5)}, {"windows": (1,)}, {"windows": (2,), "refine": ["affinity"]}], ids=str
)
@pytest.mark.parametrize("policy", POLICIES)
def test_with_flips_a_mirrored_picture_has_the_mirrored_map(backbones, policy, views):
    # A ViT, as the small CNNs see a mirrored picture as they see the other one.
    localizer = build(backbones["vit"], method="naclip", flip=True, resize=policy, **views)
    picture = photo((96, 64), red=(20, 8, 40, 30), blue=(60, 40, 90, 60))
    straight, mirrored = localizer([picture, picture[:, ::-1].copy()], ["red", "blue"])
    assert_rounded(straight.maps, mirrored.maps[:, :, ::-1].copy(), TERMS, STRETCHED)


def test_inputs_are_whole_grid_cells_and_maps_of_another_shape_are_laid_right():
    """20×24 times 1.3 is 24×32. The first view is flat, the second a slope over the original: it must come out so."""
    localizer = build(tower("gap_cnn", (5, 6)), resize="crop", scales=(1, 1.3))
    base, second = (Frame.fit("crop", (40, 64), hw) for hw in ((20, 24), (24, 32)))
    inputs = []

    def slope(ctx):
        inputs.append(tuple(ctx.images.shape[-2:]))
        h, w = ctx.trace.grid
        x = (torch.arange(w) * 4.0 + 2 - second.offset_xy[0]) / second.scale_xy[0]
        return (x if len(inputs) == 2 else 0 * x).expand(1, 1, h, w)

    give_function(localizer, slope)
    found = localizer(photo((64, 40)), ["red"])
    assert inputs == [(20, 24), (24, 32)]
    assert found.reasons[0] is None  # one flat view among others does not matter
    x = (np.arange(24) + 0.5 - base.offset_xy[0]) / base.scale_xy[0]
    expected = (x - x.min()) / (x.max() - x.min())
    np.testing.assert_allclose(found.maps[0], np.broadcast_to(expected, (20, 24)), atol=1e-4)


def test_image_size_sets_the_input(backbones):
    found = build(backbones["gap_cnn"], image_size=(48, 64))(WIDE, ["red"])
    assert found.frame.input_hw == (48, 64)
    assert found.maps.shape == (1, 48, 64)
    assert iou_matrix(found.boxes.of("red")[:1], [[36, 16, 60, 32]]).item() > 0.6
    assert build(backbones["gap_cnn"], image_size=64)(WIDE, ["red"]).frame.input_hw == (64, 64)


# -------------------------------------------------------------------------------------------------- found or not found
def test_a_constant_map_is_zeros_and_not_found(backbones):
    localizer = build(backbones["gap_cnn"])
    for value in (0.0, 3.0, -2.0):
        give_function(localizer, lambda ctx, v=value: cam(ctx) * 0 + v)
        found = localizer(WIDE, ["red"])
        assert (found.maps == 0).all()
        assert not found.found[0]
        assert found.reasons == ("cam finds no evidence for it: its map is flat",)
        assert len(found.boxes) == 0


def test_unknown_names_are_told_and_the_others_found(gap):
    gap.unknown_reason = lambda word: f"{word!r} means nothing to it" if word.startswith("zork") else None
    localizer = build(gap)
    found = localizer(TALL, ["zork", "red", "zork b|zork c"])
    assert found.reasons == ("'zork' means nothing to it", None, "'zork b' means nothing to it")
    assert found.found.tolist() == [False, True, False]
    assert set(found.boxes.label) == {1}
    mixed = localizer(TALL, ["zork|red"])  # the synonym that it knows stands for the name
    assert mixed.names == ("zork",)
    assert_rounded(mixed.maps[0], found.maps[1], TERMS, STRETCHED)
    assert mixed.found[0]


# -------------------------------------------------------------------------------------------------------------- trouble
def test_names_are_read_once_but_not_kept_for_ever(gap, monkeypatch):
    """A server's bank is asked for other names for ever."""
    monkeypatch.setattr(texts, "MOST_NAMES", 8)
    asked, encode = [], gap.encode_text
    monkeypatch.setattr(gap, "encode_text", lambda sentences: asked.extend(sentences) or encode(sentences))
    localizer, names = build(gap, text_cache=False), [f"thing {number}" for number in range(20)]
    together = localizer.embed_names(names)
    assert torch.equal(localizer.embed_names(names), together)
    assert len(asked) == 20  # as many as were asked for together stay
    for number in range(20, 80):
        localizer.embed_names([f"thing {number}"])
    torch.testing.assert_close(localizer.embed_names(names[:1]), together[:1])
    assert len(asked) == 81


def test_nan_weights_are_named_with_model_precision_and_picture(gap):
    gap.stages[1][0].weight[5, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="gap_cnn in float32 gave an embedding that is not a number for image 0: use"):
        build(gap)([TALL, WIDE], ["red"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_map_that_is_no_number_is_named_with_its_prompt_and_picture(backbones, bad):
    localizer = build(backbones["gap_cnn"])

    def broken(ctx):
        maps = cam(ctx)
        maps[1, 2, 0, 0] = bad
        return maps

    give_function(localizer, broken)
    with pytest.raises(ModelError, match=r"gap_cnn in float32 gave a map .* for image 1, prompt 'blue': use a higher"):
        localizer([TALL, WIDE], ["red", "green", "blue"])


def test_models_devices_and_methods_that_do_not_fit(backbones):
    with pytest.raises(UnknownNameError, match=r"unknown model 'minni': did you mean mini or mini-vit\?"):
        Localizer("minni")
    with pytest.raises(UsageError, match=r"^expected model, .* or a Backbone, got Sequential\(.*$"):
        Localizer(torch.nn.Sequential(torch.nn.ReLU()))
    with pytest.raises(UsageError, match=r"expected a device of this machine \(cpu.*\), got 'cuda:99': leave it out"):
        Localizer("mini", device="cuda:99")
    with pytest.raises(UnknownNameError, match=r"unknown guide 'minni': did you mean mini or mini-vit\?"):
        Localizer("RN50", "/nowhere/weights.pt", guide="minni")  # refused before the weights are looked for
    with pytest.raises(UsageError, match=r"^cam does not work on vit, a vit tower: use one of .*grad_cam"):
        Localizer(backbones["vit"], method="cam")


def test_one_picture_is_a_list_of_one_wherever_several_may_be_given_and_none_is_none(gap, tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray(WIDE).save(path)
    localizer = build(gap)
    expected = localizer(WIDE, ["red"])
    assert localizer([], ["red"]) == []
    for one in (str(path), path, Image.fromarray(WIDE), WIDE):
        [compared] = localizer.compare(one, ["red"], ["cam"])
        [streamed] = localizer.stream(one, [["red"]])
        [classified] = localizer.classify_stream(one, ["red", "blue"])
        for found in (compared["cam"], streamed):
            np.testing.assert_array_equal(found.maps, expected.maps)
        assert classified.names[0].name == localizer.classify(WIDE, ["red", "blue"])[0].name
    [found] = localizer.stream(WIDE.mean(axis=-1).astype(np.uint8), ["red"])  # grey
    assert found.image.size == WIDE.shape[1::-1]
    assert len(list(localizer.stream(np.stack([WIDE] * 3), ["red"]))) == 3


@pytest.mark.parametrize(
    ("returned", "got"),
    [(lambda ctx: ctx.features[:, :2], r"one of shape \[2, 2, 8, 8\]"), (lambda ctx: None, "NoneType")],
)
def test_a_method_that_returns_another_shape_is_named(gap, returned, got):
    said = rf"^expected mine to return a tensor \[B, P, h, w\] with B = 2 pictures and P = 3 names, got {got}: correct"
    localizer = build(gap)
    give_function(localizer, returned, name="mine")
    with pytest.raises(ModelError, match=said):
        localizer([WIDE, WIDE], ["red", "green", "blue"])


REFUSED = [  # lists of names are in tests/find/test_prompts.py, values out of range in tests/test_architecture.py
    (TALL, None, {}, "expected a list of names, got NoneType"),
    ([TALL, WIDE], [["red"]], {}, "for each of 2 pictures, got 1 lists"),
    ([TALL, WIDE], [["red"], []], {}, "expected at least one name to look for, got none"),
    (7, ["red"], {}, "expected a path, a PIL image or a numpy array, got int"),
    (TALL, ["red"], {"method_options": {"size": 3}}, "cam has no option 'size'"),
    (TALL, ["red"], {"refine": "pamr"}, "expected refine, a list of texts, got 'pamr'"),
    (TALL, ["red"], {"image_size": 33}, "expected an image_size of multiples of 4 for gap_cnn, got 33"),
]


@pytest.mark.parametrize(("images", "names", "options", "text"), REFUSED, ids=[text for *_, text in REFUSED])
def test_calls_and_options_that_are_refused(backbones, images, names, options, text):
    with pytest.raises(UsageError) as error:
        build(backbones["gap_cnn"], **options)(images, names)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("lists", "said"), [(1, "1 lists and more pictures"), (3, "3 lists and 2 pictures")])
def test_an_iterator_of_pictures_with_another_number_of_lists_of_names(backbones, lists, said):
    stream = build(backbones["gap_cnn"], batch_size=1).stream(iter([TALL, WIDE]), [["red"]] * lists)
    with pytest.raises(UsageError, match=f"expected a list of names for each picture, got {said}"):
        list(stream)


# ------------------------------------------------------------------------------------------------------------- streams
def decoders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("cliploc-decode")]


def test_broken_pictures_are_reported_and_the_good_ones_keep_their_order(backbones, tmp_path):
    paths = []
    for i in range(9):
        path = tmp_path / f"{i}.png"
        paths.append(path)
        if i % 4 == 1:
            path.write_text("no picture")
        else:
            Image.fromarray(photo((40, 40), red=(2 * i, 2 * i, 2 * i + 12, 2 * i + 12))).save(path)
    paths.insert(3, tmp_path / "missing.png")
    localizer = build(backbones["gap_cnn"], batch_size=2)
    errors = []
    reporter = Reporter(failed=lambda *error: errors.append(tuple(map(str, error))))
    results = list(localizer.stream(paths, ["red"], on_error="skip", reporter=reporter))
    assert [result.source for result in results] == [str(tmp_path / f"{i}.png") for i in (0, 2, 3, 4, 6, 7, 8)]
    assert [source for source, _ in errors] == [str(tmp_path / f"{name}.png") for name in ("1", "missing", "5")]
    assert all(text.startswith(f"{source}: ") for source, text in errors)
    for result in results:
        same(result, localizer(result.source, ["red"]))
    with pytest.raises(InputError, match=r"1\.png: not a picture that can be read"):
        list(localizer.stream(paths, ["red"]))
    with pytest.raises(UsageError, match="expected on_error to be one of raise, skip, got 'ignore'"):
        list(localizer.stream(paths, ["red"], on_error="ignore"))
    assert decoders() == []


def test_pictures_in_memory_are_read_before_the_next_one_is_asked_for(backbones, tmp_path):
    def camera():
        buffer = np.empty_like(SQUARE)
        for colour in COLOURS.values():
            buffer[:] = colour
            yield buffer

    localizer = build(backbones["gap_cnn"])
    for result, colour in zip(localizer.stream(camera(), ["red"]), COLOURS.values(), strict=True):
        assert result.image.getpixel((0, 0)) == colour
    Image.fromarray(SQUARE).resize((999, 999)).save(tmp_path / "one.png")
    for _ in range(5):
        with Image.open(tmp_path / "one.png") as unread:
            assert len(localizer([unread] * 8, ["red"])) == 8


@pytest.mark.parametrize("size", [1, 2, 8])
def test_what_comes_before_an_error_is_yielded_whatever_the_batch_size(backbones, tmp_path, size):
    def torn():
        yield from [TALL, WIDE]
        raise OSError("the camera is gone")

    def wrong(stream, kind):
        assert len(list(itertools.islice(stream, 2))) == 2
        with pytest.raises(kind):
            next(stream)

    localizer, broken = build(backbones["gap_cnn"], batch_size=size), [TALL, WIDE, tmp_path / "no.png", TALL]
    wrong(localizer.stream(broken, ["red"]), InputError)
    wrong(localizer.compare(torn(), ["red"], ["grad_cam"], on_error="skip"), OSError)
    wrong(localizer.stream([TALL, WIDE, TALL], [["red"], ["blue"], []]), UsageError)
    wrong(localizer.classify_stream(broken, ["red", "blue"]), InputError)


@pytest.mark.parametrize("call", [Localizer.stream, Localizer.compare, Localizer.run])
def test_calls_name_what_a_run_may_be_given(call):
    given = {field.name for field in dataclasses.fields(RunOptions)}
    given -= {"on_error"} if call is Localizer.run else {"lessons"}
    assert given <= inspect.signature(call).parameters.keys()


def test_a_stream_reads_only_a_few_pictures_ahead(backbones):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield TALL

    batch_size = 2
    stream = build(backbones["gap_cnn"], batch_size=batch_size).stream(endless(), ["red"])
    assert taken == 0  # nothing happens before it is asked for
    for given in range(1, 12):
        next(stream)
        assert taken <= given + 2 * batch_size + DECODERS
    stream.close()


def test_threads_end_with_the_stream_that_is_left_early(backbones):
    localizer = build(backbones["gap_cnn"], batch_size=2)
    stream = localizer.stream(iter([TALL] * 50), ["red"])
    next(stream)
    assert decoders()
    stream.close()
    assert decoders() == []
    localizer(TALL, ["red"])
    assert decoders() == []


def test_a_broken_picture_keeps_its_place_in_the_batch(backbones, tmp_path, monkeypatch):
    """So that the others meet the same neighbours as when it is whole, and a resumed run gives the same bytes."""
    batches, plain = [], Flow.compute

    def spied(self, batch, *rest, **more):
        batches.append([one.picture.source for one in batch if isinstance(one, Prepared)])
        return plain(self, batch, *rest, **more)

    monkeypatch.setattr(Flow, "compute", spied)
    pictures = [TALL, tmp_path / "no.png", SQUARE, WIDE, tmp_path / "neither.png", tmp_path / "nor.png", TALL]
    results = list(build(backbones["gap_cnn"], batch_size=2).stream(pictures, ["red"], on_error="skip"))
    assert batches == [["image 0"], ["image 2", "image 3"], [], ["image 6"]]
    assert len(results) == 4


def test_batches_too_large_for_the_memory_are_done_in_halves_and_the_next_ones_too(backbones, monkeypatch):
    plain, sizes, told = Flow.compute, [], []

    def narrow(self, batch, *rest, **more):
        sizes.append(len(batch))
        if len(batch) > 2:
            said = "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: not enough memory: you tried …"
            raise MemoryError if batch[0].id else RuntimeError(said)
        return plain(self, batch, *rest, **more)

    localizer, pictures = build(backbones["gap_cnn"], batch_size=5), [*PHOTOS, *PHOTOS, WIDE]
    whole = list(localizer.compare(pictures, ["red", "blue"], ["cam", "grad_cam"]))
    monkeypatch.setattr(Flow, "compute", narrow)
    halved = list(
        localizer.compare(pictures, ["red", "blue"], ["cam", "grad_cam"], reporter=Reporter(halved=told.append))
    )
    assert sorted(sizes) == [1, 1, 1, 2, 2, 2, 2, 3, 3, 5, 5]
    assert sorted(told) == [3, 3, 5, 5]
    for one, other in zip(whole, halved, strict=True):
        for method in ("cam", "grad_cam"):
            same(one[method], other[method])
    monkeypatch.setattr(Flow, "compute", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("not enough memory")))
    with pytest.raises(RuntimeError, match="not enough memory"):  # even for a single picture
        list(localizer.compare(PHOTOS, ["red"], ["cam"]))
    monkeypatch.setattr(Flow, "compute", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("of another kind")))
    with pytest.raises(RuntimeError, match="of another kind"):
        list(localizer.compare(PHOTOS, ["red"], ["cam"]))


@pytest.mark.parametrize("options", [{}, {"resize": "pad", "scales": (1, 1.5), "flip": True}])
def test_maps_of_absent_names_can_be_left_out_and_the_others_are_the_same(gap, options):
    names = ["red", "green", "blue"]
    presence = [one.presence for one in build(gap, min_presence=1e-9, **options)(PHOTOS, names)]
    least = float(np.median(presence))
    localizer = build(gap, min_presence=least, **options)
    whole = list(localizer.compare(PHOTOS, names, ["cam", "grad_cam"]))
    some = list(localizer.compare(PHOTOS, names, ["cam", "grad_cam"], absent_maps=False))
    absent = 0
    for one, other in zip(whole, some, strict=True):
        for method in ("cam", "grad_cam"):
            all_maps, maps, found = one[method].maps, other[method].maps, one[method].presence >= least
            assert_rounded(maps[found], all_maps[found], TERMS, STRETCHED)
            assert not maps[~found].any()
            assert other[method].reasons == one[method].reasons
            np.testing.assert_allclose(other[method].boxes.xyxy, one[method].boxes.xyxy, atol=1e-3)
            assert_rounded(other[method].boxes.score, one[method].boxes.score, TERMS, STRETCHED)
            absent += all_maps[~found].any(axis=(1, 2)).sum()
    assert absent > 0, "something was left out"


def test_a_result_holds_the_pictures_embedding_and_names_can_be_compared_with_it(backbones):
    localizer = build(backbones["vit"])
    found = localizer(WIDE, ["red", "blue"])
    assert np.linalg.norm(found.embedding) == pytest.approx(1, abs=1e-5)
    names = localizer.embed_names(["green|blue", "blue", "red"])  # [3, D]
    assert_rounded(names[[2, 1]].numpy() @ found.embedding, found.scores, TERMS, 1)
    with pytest.raises(UsageError, match="got an empty one"):
        localizer.embed_names(["red", ""])


@pytest.mark.parametrize("second_look", [False, True])
@pytest.mark.parametrize(
    ("strict", "why"),
    [
        ({"min_score": 1}, "no box scores 1 or more"),
        ({"min_area": 0.9}, "no region of its map reaches 0.9 of the picture"),
    ],
)
def test_a_name_without_a_box_by_one_rule_has_those_of_another(backbones, strict, why, second_look):
    how = {"min_presence": 0, "min_score": 0, "second_look": second_look}
    none, usual = (build(backbones["gap_cnn"], **{**how, **more})(WIDE, ["red"]) for more in (strict, {}))
    again = none.by(usual.rule, 0.0)
    assert (len(none.boxes), none.reasons, none.maps.max()) == (0, (why,), 1)
    assert (again.reasons, again.found.tolist(), again.box_rule) == (usual.reasons, [True], usual.box_rule)
    np.testing.assert_array_equal(again.boxes.xyxy, usual.boxes.xyxy)
    np.testing.assert_array_equal(none.boxes_by(usual.rule).score, usual.boxes.score)
    with pytest.raises(UsageError, match=r"expected a BoxRule, got 0\.3"):
        none.boxes_by(0.3)
    with pytest.raises(UsageError, match="expected min_presence from 0 to 1, got nan"):
        none.by(usual.rule, math.nan)


# ----------------------------------------------------------------------------------------------------- odd conditions
MODES = {
    "float64": lambda: default_dtype(torch.float64),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
}


@pytest.mark.parametrize("model", ["mini", "mini-vit"])
def test_modes_that_the_program_set_change_nothing(model):
    names, picture = ["cat", "remote control"], np.asarray(Image.open(CAT).resize((80, 60)))
    fitting = ["cam", "grad_cam", "layer_cam"] if model == "mini" else ["naclip", "chefer", "legrad", "rollout"]
    options = {"text_cache": False}
    before = Localizer(create_once(model), **options)
    (expected,) = before.compare([picture], names, fitting)
    best = before.classify(picture, names)
    for mode in MODES.values():
        with mode():
            for localizer in (before, Localizer(model, **options)):
                (found,) = localizer.compare([picture], names, fitting)
                for method in fitting:
                    same(found[method], expected[method])
                for one, other in zip(localizer.classify(picture, names), best, strict=True):
                    assert one == pytest.approx(other, abs=1e-6) if not isinstance(one, str) else one == other


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_copy_is_the_same_with_a_model_and_a_memory_of_its_own(copied):
    localizer = Localizer("mini", recipe="fast", memory=Memory(2**20), text_cache=False)
    found, other = localizer(CAT, ["cat"]), copied(localizer)
    assert other.describe() == localizer.describe()
    same(other(CAT, ["cat"]), found)
    assert other.backbone is not localizer.backbone
    assert other.options.memory is not localizer.options.memory
    assert (other.options.memory.max_bytes, localizer.options.memory.max_bytes) == (2**20, 2**20)


def test_threads_that_share_a_localizer_see_what_one_sees():
    localizer = Localizer(create_once("mini"), method="grad_cam", text_cache=False, memory=Memory())
    pictures = [np.asarray(Image.open(CAT).resize((80 + i, 60))) for i in range(4)]
    expected = [localizer(picture, ["cat", f"thing {i}"]) for i, picture in enumerate(pictures)]
    shared = Localizer(create_once("mini"), method="grad_cam", text_cache=False, memory=Memory())
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            found = pool.map(lambda i: shared(pictures[i], ["cat", f"thing {i}"]), range(4))
            for one, other in zip(found, expected, strict=True):
                same(one, other)
