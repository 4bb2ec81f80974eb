"""What every saliency method of the registry must hold, on every tower kind that it is defined on; what is refused."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cliploc.methods
from cliploc.errors import UsageError
from cliploc.evaluate.tasks.boxes.job import unfit_for_setup
from cliploc.localizer import Localizer
from cliploc.methods import Context, find, fitting, methods, resolve_options, unfit_reason
from cliploc.options import Options
from cliploc.runs.plan import ModelSetup
from cliploc.towers import models
from cliploc.towers.tower import Needs
from cliploc.web.service import Offer, Service
from tests.methods.peers import min_max
from tests.methods.towers import (
    CUT_RESNET,
    MINI_VIT,
    QUICK,
    TINY_GRIDS,
    AveragingVit,
    QueryingVit,
    build,
    cases,
    copy_of,
    grids,
    ours,
    pictures,
    scenes,
    tiny,
)
from tests.tiny import KINDS, TinyVit, context, default_dtype, planted_image, tower
from tests.tolerances import assert_rounded
from tests.towers.seam import assert_state, state_of

TEXTS = ("red", "green", "a zebra", "blue")
CASES = cases()
GRID = TINY_GRIDS[0]  # of the planted ones
# SmoothGrad's map is |gradient|: where a change of a pixel would move the score, up or down, not what speaks for the
# prompt. A cell without the object may be hotter than the object. Its equation is in test_backward.py.
NO_EVIDENCE = {"smooth_grad"}
# What a baseline declares, that its map reads no picture, frees it from finding anything in one.
planted_case = pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name, kind in CASES
        if kind in KINDS and methods.get(name).reads_picture and name not in NO_EVIDENCE
    ],
)
blind_case = pytest.mark.parametrize(
    ("name", "kind"), [case for case in CASES if not methods.get(case[0]).reads_picture]
)
# Score-CAM on mini-vit makes a picture for each of its channels: it runs there on one grid; the rest is tested of it on
# other towers, and of other methods on that tower.
SLOW = {("score_cam", MINI_VIT)}
every_case = pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case not in SLOW])
# What does not depend on the tower's weights or size.
tiny_case = pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] in KINDS])
# tests/towers/seam.py asks of every ViT what a trace leaves behind, and not of the ResNet.
small_case = pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] != MINI_VIT])
clip_case = pytest.mark.parametrize(
    ("name", "kind"), [case for case in CASES if case[1] == CUT_RESNET and methods.get(case[0]).reads_text]
)


def maps_of(name: str, ctx: Context, **options: Any) -> Tensor:
    return methods.get(name).function(ctx, **{**QUICK.get(name, {}), **options})


def needs_of(name: str, **options: Any) -> Needs:
    return methods.get(name).needs(**{**QUICK.get(name, {}), **options})


def sharpened(name: str, temperature: float) -> dict[str, Any]:
    """The temperature of a method that masks by channels: others have none, or need none here."""
    method = methods.get(name)
    return {"temperature": temperature} if method.family == "perturbation" and "temperature" in method.options else {}


def run(name: str, backbone: Any, images: Tensor, texts: Any = TEXTS, **kwargs: Any) -> Tensor:
    return maps_of(name, context(backbone, images, texts, needs_of(name), **kwargs))


def find_planted(name: str, backbone: Any, images: Tensor, texts: Any) -> Tensor:
    """Maps at the tower's own temperature: one channel holds the object, and must outweigh all others together."""
    options = sharpened(name, 1 / backbone.logit_scale)
    return maps_of(name, context(backbone, images, texts, needs_of(name, **options)), **options)


def one_trace(name: str, kind: str) -> Callable[[list[int]], Tensor]:
    """Maps of a choice of TEXTS, all from the same forward pass."""
    backbone, images = build(kind), pictures(kind)
    trace, text = backbone.trace(images, needs_of(name)), backbone.encode_text(TEXTS).expand(2, -1, -1)  # [B, P, D]
    return lambda chosen: maps_of(name, Context(lambda: images, text[:, chosen], trace, backbone))


def assert_close(ours: Tensor, expected: Tensor, backbone: nn.Module) -> None:
    """Raw maps have any scale, but cosines are on the way of all: small maps are small differences of them."""
    assert_rounded(ours, expected, backbone, max(1.0, float(expected.abs().max())))


def test_every_public_file_is_a_registered_method() -> None:
    package = Path(cliploc.methods.__file__).parent
    files = {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}
    assert files == set(methods.names())


@pytest.mark.parametrize("kind", [TinyVit, AveragingVit, QueryingVit, "gap_cnn"])
def test_what_does_not_run_on_a_tower_is_refused_before_a_picture_and_offered_nowhere(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Localizer`, the page's menu, the benchmark's grid and the lists all say what running it says."""
    backbone = tower(kind) if isinstance(kind, str) else tiny(kind)
    picture = np.zeros((20, 24, 3), np.uint8)
    runs, refused = [], {}
    for method in methods:
        try:
            options = QUICK.get(method.name, {})
            localizer = Localizer(
                backbone, method=method.name, method_options=options, text_cache=False, min_presence=0
            )
        except UsageError as error:
            refused[method.name] = str(error)
        else:
            localizer(picture, ["red"])
            runs.append(method.name)
    for name, message in refused.items():
        assert message.startswith(f"{unfit_reason(methods.get(name), backbone)}: use one of {', '.join(runs)}")
    assert runs == list(fitting(backbone))
    service = Service([Offer("tiny")])
    monkeypatch.setattr(service, "backbone", lambda _: backbone)
    assert list(service.menu("tiny").methods) == runs
    entry = replace(models.get("mini"), name="tiny", kind=backbone.kind, pooling=backbone.pooling)
    monkeypatch.setattr(models, "get", lambda _: entry)
    assert [
        name for name in methods.names() if unfit_for_setup(ModelSetup(Options(model="tiny")), name) is None
    ] == runs


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [(*case, size) for case in CASES for size in (0, 1) if size == 0 or case != ("score_cam", MINI_VIT)],
)
def test_maps_are_finite_float32_on_the_grid(name: str, kind: str, size: int) -> None:
    """The second grid is another input size than the one that positions were learnt on."""
    images, backbone = pictures(kind, grids(kind)[size]), build(kind)
    ctx = context(backbone, images, TEXTS, needs_of(name))
    maps = maps_of(name, ctx)
    # The finest of the features that it reads; a map that reads no picture is not bound to them.
    grid = max([tuple(read.shape[-2:]) for read in ctx.trace.features.values()], default=grids(kind)[size])
    if not methods.get(name).reads_picture:
        grid = tuple(images.shape[-2:])
    assert maps.shape == (2, len(TEXTS), *grid)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert not maps.requires_grad
    assert (maps.amax((-2, -1)) > maps.amin((-2, -1))).any(1).all(), "flat maps everywhere"


@blind_case
def test_a_map_that_reads_no_picture_is_the_same_for_all_and_needs_no_tower(name: str, kind: str) -> None:
    method, images = methods.get(name), pictures(kind)
    maps = run(name, build(kind), images)
    assert torch.equal(maps, run(name, build(kind), torch.zeros_like(images)))
    assert (maps == maps[0, 0]).all()
    assert method.needs() == Needs()
    assert not method.reads_text


@tiny_case
def test_blank_pictures_and_dead_channels_give_finite_maps(name: str, kind: str) -> None:
    """Nothing to see: channels are constant or off, sums are zero."""
    backbone, images = build(kind), pictures(kind)
    assert run(name, backbone, torch.zeros_like(images[:1])).isfinite().all()
    ctx = context(backbone, images, TEXTS, needs_of(name))
    for features in ctx.trace.features.values():
        features.zero_()
    assert maps_of(name, ctx).isfinite().all()


@pytest.mark.parametrize("name", [name for name, kind in CASES if kind == "vit"])
def test_equal_patches_give_finite_maps(name: str) -> None:
    """As in a blank picture, by a tower to which places are alike."""
    backbone = copy_of("vit")
    backbone.positions.zero_()
    colours = 2 * torch.randn(8, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    assert run(name, backbone, colours.expand(-1, -1, 4, 28).contiguous()).isfinite().all()


@clip_case
def test_another_prompt_gives_another_map(name: str, kind: str) -> None:
    """Nothing is planted in random weights; but the text is heard, by weights that are sharp enough to tell."""
    backbone, options = build(kind), sharpened(name, 1e-3)
    ctx = context(backbone, pictures(kind), ["red", "a zebra"], needs_of(name, **options))
    red, zebra = min_max(maps_of(name, ctx, **options)).unbind(1)
    assert (red - zebra).abs().max() > 0.02


@planted_case
def test_two_prompts_give_two_maps(name: str, kind: str) -> None:
    """Two objects in one picture: each prompt's map is hottest where its object is."""
    picture = planted_image("red", GRID, (1, 2)) + planted_image("green", GRID, (3, 0))
    red, green = find_planted(name, build(kind), picture, ["red", "green"])[0]
    if not methods.get(name).reads_text:
        assert torch.equal(red, green)
        assert divmod(int(red.argmax()), GRID[1]) in ((1, 2), (3, 0))
        return
    assert divmod(int(red.argmax()), GRID[1]) == (1, 2)
    assert divmod(int(green.argmax()), GRID[1]) == (3, 0)


@every_case
def test_a_batch_of_two_is_two_batches_of_one(name: str, kind: str) -> None:
    """Also with other prompts for each image."""
    backbone, images = build(kind), pictures(kind)
    text = torch.stack([backbone.encode_text(["red", "a zebra"]), backbone.encode_text(["blue", "red"])])  # [2, 2, D]

    def of(rows: slice) -> Tensor:
        trace = backbone.trace(images[rows], needs_of(name))
        return maps_of(name, Context(lambda: images[rows], text[rows], trace, backbone))

    both = of(slice(0, 2))
    apart = torch.cat([of(slice(0, 1)), of(slice(1, 2))])
    assert_close(both, apart, backbone)


@tiny_case
def test_the_size_of_internal_batches_does_not_matter(name: str, kind: str) -> None:
    backbone = build(kind)
    few = run(name, backbone, pictures(kind), batch_size=5)
    many = run(name, backbone, pictures(kind), batch_size=1000)
    assert_close(few, many, backbone)


@tiny_case
def test_prompts_at_once_are_runs_of_one(name: str, kind: str) -> None:
    """Unless a method says that its prompts interact: then they must not be, and their order does not matter."""
    of, prompts, order = one_trace(name, kind), [0, 1, 2, 3], [2, 0, 3, 1]
    maps = of(prompts)
    apart = torch.cat([of([prompt]) for prompt in prompts], dim=1)
    if methods.get(name).prompts_interact:
        assert (maps - apart).abs().amax((-2, -1)).min() > 1e-4
        assert_close(of(order), maps[:, order], build(kind))
    else:
        assert_close(maps, apart, build(kind))


@tiny_case
def test_the_same_seed_gives_the_same_map(name: str, kind: str) -> None:
    torch.manual_seed(1)
    first = run(name, build(kind, seed=4), pictures(kind))
    torch.manual_seed(2)
    assert torch.equal(first, run(name, build(kind, seed=4), pictures(kind)))
    other = run(name, build(kind, seed=5), pictures(kind))
    assert torch.equal(first, other) != methods.get(name).reads_picture


class TowerError(RuntimeError):
    """What the raising module raises."""


class Raising(nn.Module):
    """Stands where the tower ends: whoever finishes the tower meets it."""

    def forward(self, features: Tensor) -> Tensor:
        raise TowerError

    read_locations = forward


@contextlib.contextmanager
def broken(backbone: Any) -> Iterator[None]:
    name = "ln_post" if backbone.kind == "vit" else "pool_layer"
    full = getattr(backbone, name)
    setattr(backbone, name, Raising())
    try:
        yield
    finally:
        setattr(backbone, name, full)


def stopped(name: str) -> contextlib.AbstractContextManager[Any]:
    """A broken tower stops every method but those that read attention at most: they run none of it."""
    needs = methods.get(name).needs()
    runs = methods.get(name).family in ("perturbation", "gradient")
    reads_attention_only = needs == Needs(attention=needs.attention) and not runs
    return contextlib.nullcontext() if reads_attention_only else pytest.raises(TowerError)


@small_case
def test_nothing_is_left_behind(name: str, kind: str) -> None:
    """By a success, nor by an exception, which reaches the caller."""
    backbone = copy_of(kind)
    for number, parameter in enumerate(backbone.parameters()):
        parameter.requires_grad_(number % 3 > 0)  # a `.backward()` would show in some
    passed = context(backbone, pictures(kind), TEXTS, needs_of(name))
    images, text = passed.images.clone(), passed.text.clone()
    features = {stage: tensor.clone() for stage, tensor in passed.trace.features.items()}
    for raises in (False, True):
        ctx = Context(lambda: passed.images, passed.text, passed.trace, backbone)  # which keeps no scores of the other
        with broken(backbone) if raises else contextlib.nullcontext():
            before = state_of(backbone)
            with stopped(name) if raises else contextlib.nullcontext():
                maps = maps_of(name, ctx)
                assert not maps.requires_grad
            assert_state(backbone, before)
        assert torch.equal(ctx.images, images)
        assert torch.equal(ctx.text, text)
        assert all(torch.equal(ctx.trace.features[stage], features[stage]) for stage in features)
        assert all(not tensor.requires_grad and tensor.grad is None for tensor in ctx.trace.features.values())


@tiny_case
def test_callers_without_gradients_get_the_same_maps(name: str, kind: str) -> None:
    backbone = build(kind)
    expected = run(name, backbone, pictures(kind))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            maps = run(name, backbone, pictures(kind))
        assert_close(maps.clone(), expected, backbone)


@tiny_case
def test_the_programs_default_dtype_changes_no_map(name: str, kind: str) -> None:
    backbone, images = build(kind), pictures(kind)
    expected = run(name, backbone, images)
    with default_dtype(torch.float64):
        assert_close(run(name, backbone, images), expected, backbone)


@planted_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_low_precision_towers_give_float32_maps(name: str, kind: str, dtype: torch.dtype) -> None:
    """The planted cell is still the hottest; a comparison of values would test the precision, not the method."""
    backbone = copy_of(kind).to(dtype)
    maps = run(name, backbone, planted_image("red", GRID, (3, 4)), ["red"])
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert divmod(int(maps[0, 0].argmax()), GRID[1]) == (3, 4)


@planted_case
def test_a_planted_object_is_found(name: str, kind: str) -> None:
    backbone, colours = build(kind), ["red", "green", "blue", "red", "green"]
    cells = [(0, 0), (2, 3), (4, 5), (1, 4), (3, 0)]
    images = torch.cat([planted_image(colour, GRID, cell) for colour, cell in zip(colours, cells, strict=True)])
    options, text = sharpened(name, 1 / backbone.logit_scale), backbone.encode_text(colours)[:, None]  # [B, 1, D]
    trace = backbone.trace(images, needs_of(name, **options))
    found = maps_of(name, Context(lambda: images, text, trace, backbone), **options)
    for cell, flat in zip(cells, found.flatten(1), strict=True):
        assert divmod(int(flat.argmax()), GRID[1]) == cell
        assert flat.max() > 0 or not methods.get(name).relu, (
            "negative evidence is cut: the object must speak for the prompt"
        )
        assert flat.topk(2).values.diff().abs() > 0.05 * (flat.max() - flat.min()), "the cell does not stand out"


# ------------------------------------------------------------------------------------------------------------- refusals
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("chefer", {"blocks": 2.0}, "`int | str`"),
    ("finer_cam", {"block": 0}, "`int` <= -1"),
    ("gem", {"temperature": 0.0}, "`float` > 0.0"),
    ("cam+layer_cam", {"stages": -1}, "`array`"),
    ("cam+layer_cam", {"stages": "2,x"}, "`int`"),
    ("naclip", {"sigma": math.nan}, "`float` > 0.0"),
    ("occlusion", {"side": 1.5}, "`float` <= 1.0"),
    ("grad_eclip", {"published": 1}, "`bool`"),
]


@pytest.mark.parametrize(("name", "options", "expected"), REFUSED, ids=str)
def test_an_option_out_of_range_is_one_line(name: str, options: dict[str, Any], expected: str) -> None:
    (option,) = options
    member = name.rpartition("+")[2]
    with pytest.raises(
        UsageError, match=rf"^expected {member}'s option {option} as [^\n]*{re.escape(expected)}[^\n]*, got "
    ):
        resolve_options(find(name), options)


def test_more_blocks_than_the_tower_has() -> None:
    backbone = tiny(AveragingVit)
    with pytest.raises(UsageError, match=r"^expected a block of vit from -2 to -1"):
        ours("rollout", backbone, scenes(), backbone.encode_text(["red"]), blocks=3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, AveragingVit) for name in ("raw_attention", "ts_cam", "lctr", "decomposition", "grad_eclip")),
        *((name, QueryingVit) for name in ("decomposition", "grad_eclip")),
    ],
)
def test_a_tower_that_pools_otherwise_is_refused(name: str, kind: type) -> None:
    with pytest.raises(UsageError, match=rf"{name} does not work on vit, a vit tower with .* pooling: use one of"):
        Localizer(tiny(kind), method=name, text_cache=False)
