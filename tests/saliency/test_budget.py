"""Score-CAM out of a few masks: how near, how many, and whether it knows how near; and masks that are the same."""

import math
from importlib.resources import files

import pytest
import torch
from torch import Tensor

from cliploc.localizer import Localizer
from cliploc.saliency import methods
from cliploc.saliency._infra.budget import MaskSet, estimate, spread
from cliploc.saliency._infra.masked import masked_embeddings
from tests.saliency.test_score_cam import counted

GRID = 7
TEMPERATURE = 0.02
BUDGETED = ("score_cam", "vl_score")


def blobs(count: int, seed: int = 0) -> tuple[MaskSet, Tensor]:
    """Masks of one or two hot regions each, and how hot each is at the object, in the lower right: `[u]`."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    place = GRID * torch.rand(count, 2, 2, 1, 1, generator=generator)
    width = 1 + torch.rand(count, 2, 1, 1, generator=generator)
    heat = torch.exp(-((y - place[:, :, 0]) ** 2 + (x - place[:, :, 1]) ** 2) / (2 * width**2))  # [u, 2, 7, 7]
    heat = (heat[:, 0] + 0.5 * heat[:, 1]).flatten(1)
    heat = heat - heat.amin(dim=1, keepdim=True)
    unit = heat / heat.amax(dim=1, keepdim=True)
    on_object = unit.view(count, GRID, GRID)[:, 3:6, 3:7].mean(dim=(1, 2))
    return MaskSet(unit, unit * (0.5 + torch.rand(count, 1, generator=generator)), torch.ones(count)), on_object


def answered(
    masks: MaskSet,
    scores: Tensor,
    budget: int,
    enough: float = 2.0,
    temperature: float = TEMPERATURE,
    floor: float = -math.inf,
) -> tuple[Tensor, float, int]:
    """The scores, the expected correlation, and how many masks were tried."""
    tried: list[int] = []
    plan = estimate(masks, spread(masks.unit, min(30, budget // 2)), budget, temperature, enough, floor)
    asked = next(plan)
    while True:
        tried.extend(asked.tolist())
        try:
            asked = plan.send(scores[asked])
        except StopIteration as finished:
            assert len(set(tried)) == len(tried) <= budget
            return *finished.value, len(tried)


def similarity(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_of_the_masks_gives_nearly_the_same_map(seed: int) -> None:
    """Also where few masks hold all the weight, which the first, spread ones miss."""
    masks, on_object = blobs(500, seed)
    scores = 0.2 * on_object
    exact = masks.map_of(scores, TEMPERATURE)
    found, _, _ = answered(masks, scores, 50)
    assert similarity(masks.map_of(found, TEMPERATURE), exact) >= 0.99
    assert similarity(masks.map_of(torch.zeros(500), TEMPERATURE), exact) < 0.9, "any map would do: nothing was tested"
    _, correlation, tried = answered(masks, scores, 400, enough=0.9)
    assert tried < 200, "it does not stop when it is sure enough"
    assert correlation >= 0.9


def test_it_says_less_where_it_knows_less() -> None:
    """Scores that no mask foretells: the expected correlation is low, and so is the true one."""
    masks, on_object = blobs(500)
    _, sure, _ = answered(masks, 0.2 * on_object, 50)
    chance = 0.2 * torch.rand(500, generator=torch.Generator().manual_seed(1))
    rough, unsure, _ = answered(masks, chance, 50)
    true = similarity(masks.map_of(rough, TEMPERATURE), masks.map_of(chance, TEMPERATURE))
    assert sure >= 0.99
    assert true < 0.97
    assert unsure < 0.97


@pytest.mark.parametrize("seed", range(3))
def test_with_a_floor_it_tries_what_may_be_on_either_side(seed: int) -> None:
    """Few masks are above it, and which they are makes the map; without the floor it would be sure too soon."""
    masks, on_object = blobs(500, seed)
    scores = 0.2 * on_object + 0.02 * torch.randn(500, generator=torch.Generator().manual_seed(seed))
    floor, temperature = float(scores.quantile(0.97)), 0.1
    exact = masks.map_of(scores, temperature, floor)
    aware, _, many = answered(masks, scores, 100, 0.995, temperature, floor)
    unaware, sure, few = answered(masks, scores, 100, 0.995, temperature)
    near, far = (similarity(masks.map_of(one, temperature, floor), exact) for one in (aware, unaware))
    assert near >= 0.995
    assert far < 0.993 < sure, "it need not know the floor: nothing was tested"
    assert few < many
    assert not masks.map_of(scores, temperature, floor=float(scores.max())).any(), "nothing is above it: a flat map"


@pytest.mark.parametrize("name", BUDGETED)
def test_with_a_budget_for_all_masks_it_is_the_exact_method(name: str) -> None:
    ctx, _ = counted("attention_pool_cnn")
    exact = methods.get(name).function(ctx)
    notes: list[tuple[int, str]] = []
    ctx, _ = counted("attention_pool_cnn", note=lambda b, remark: notes.append((b, remark)))
    torch.testing.assert_close(methods.get(name).function(ctx, budget=1000), exact, rtol=1e-5, atol=1e-6)
    assert not notes


@pytest.mark.parametrize("name", BUDGETED)
def test_the_tower_runs_no_more_often_than_the_budget_says(name: str) -> None:
    notes: list[tuple[int, str]] = []
    ctx, calls = counted("gap_cnn", 1, note=lambda b, remark: notes.append((b, remark)))
    ctx.features[:] = torch.rand(ctx.features.shape, generator=torch.Generator().manual_seed(0))
    methods.get(name).function(ctx, budget=16)
    tried = [int(remark.split()[0]) for _, remark in notes]
    several = [int((masked_embeddings(ctx, wanted=torch.zeros(2, 24, dtype=torch.bool)).done[b]).sum()) for b in (0, 1)]
    assert notes
    assert max(tried) <= 16
    assert calls.images <= 2 * 16 + 1  # two pictures, and the empty one
    assert min(several) < 24, "every mask was tried: nothing was saved"


def test_a_prompts_map_does_not_depend_on_the_others() -> None:
    together, _ = counted("gap_cnn", 5)
    maps = methods.get("score_cam").function(together, budget=16)
    for p in range(5):
        alone, _ = counted("gap_cnn", 5)
        alone.text.data = alone.text[:, p : p + 1].clone()
        torch.testing.assert_close(methods.get("score_cam").function(alone, budget=16)[:, 0], maps[:, p])


def test_the_callers_random_numbers_stay_what_they_were() -> None:
    ctx, _ = counted("gap_cnn")
    before = torch.get_rng_state()
    methods.get("score_cam").function(ctx, budget=16)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_localizer_says_how_sure_the_map_is() -> None:
    localizer = Localizer(method="score_cam", method_options={"budget": 16}, image_size=96, device="cpu")
    found = localizer(str(files("cliploc") / "demo_photos" / "cat.jpg"), ["cat"])
    (note,) = found.notes
    assert "masks were tried: expected correlation with the exact map" in note


def test_channels_with_the_same_mask_cost_one_forward() -> None:
    ctx, calls = counted("gap_cnn")
    source = ctx.features[:, 0].clone()
    source[:, 0, 0] += 1  # alive, in both pictures
    ctx.features[:] = torch.rand(ctx.features.shape, generator=torch.Generator().manual_seed(0))
    for k in (3, 7, 8):
        ctx.features[:, k] = 4 * source + k
    methods.get("score_cam").function(ctx)
    masked = masked_embeddings(ctx)
    assert calls.images == 2 * (24 - 2) + 1
    assert masked.done.all()
    assert torch.equal(masked.embeddings[:, 3], masked.embeddings[:, 8])
    assert not torch.equal(masked.embeddings[:, 3], masked.embeddings[:, 4])


def test_a_channel_asked_for_later_takes_its_twins_embedding() -> None:
    ctx, calls = counted("gap_cnn")
    ctx.features[:] = torch.rand(ctx.features.shape, generator=torch.Generator().manual_seed(0))
    ctx.features[:, 5] = 2 * ctx.features[:, 1]
    wanted = torch.zeros(2, 24, dtype=torch.bool)
    wanted[:, 1] = True
    masked_embeddings(ctx, wanted=wanted)
    before = calls.images
    masked = masked_embeddings(ctx, wanted=wanted.roll(4, dims=1))
    assert calls.images == before
    assert torch.equal(masked.embeddings[:, 5], masked.embeddings[:, 1])
