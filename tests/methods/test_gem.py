"""GEM and CLIP Surgery, paths beside the last blocks: against their equations on three towers, and gem_torch."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.localizer import Localizer
from cliploc.methods import Context, methods
from tests.methods.peers import assert_same_maps, min_max
from tests.methods.plain_vit import TOWERS, PlainVit, assert_equal, attend, open_clip_model, plain_vit
from tests.methods.towers import ours, twelve_blocks
from tests.tiny import tower
from tests.tolerances import STRETCHED, assert_rounded
from tests.towers.seam import tokenizer


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def gathered(q: Tensor, k: Tensor, v: Tensor, sharpness: Tensor | float, iterations: int) -> Tensor:
    """Of one head: the mean of three self-self attentions `[T, d/H]`."""
    total = torch.zeros_like(v)
    for x in (q, k, v):
        for _ in range(iterations):
            x = torch.softmax(sharpness * unit(x) @ unit(x).T, dim=1) @ unit(x)
        total = total + torch.softmax(sharpness * unit(x) @ unit(x).T, dim=1) @ v
    return total / 3


def expected(vit: PlainVit, depth: int, iterations: int = 1, temperature: float | None = None) -> Tensor:
    def one(image: Tensor) -> Tensor:
        entering, start = vit.entering(image), len(vit.blocks) - depth
        path = entering[start]
        for x, block in zip(entering[start:-1], vit.blocks[start:], strict=True):
            lengths = [token.norm() for token in block.norm_1(x)]
            sharpness = sum(lengths) / len(lengths) / (x.shape[1] / block.heads) ** 0.5
            if temperature is not None:
                sharpness = 1 / temperature
            path = path + block.branch(x, lambda q, k, v, s=sharpness: gathered(q, k, v, s, iterations))
        return vit.cosines(path)

    return vit.maps(one)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize(
    "options",
    [{"depth": 1}, {"depth": 2, "iterations": 0}, {"depth": 2, "iterations": 3}, {"depth": 2, "temperature": 0.05}, {}],
)
def test_the_equation_of_gem(kind: str, options: dict[str, Any]) -> None:
    """By default a depth beyond the tower, which means all of it."""
    vit = plain_vit(kind)
    assert_equal(vit.ours("gem", **options), expected(vit, **{"depth": len(vit.blocks), **options}))


def gem_torch(model: Any, images: Tensor, text: Tensor, **options: Any) -> Tensor:
    """`[B, P, H, W]` in 0–1.

    Blocks that it leaves alone get tokens as `torch.nn.MultiheadAttention` took them in its time, [T, B, d]: left as
    open_clip builds them today, each token would attend to itself alone.
    """
    gem = pytest.importorskip("gem", reason="gem_torch is not installed: make setup")
    theirs = copy.deepcopy(model)
    for block in theirs.visual.transformer.resblocks:
        block.attn.batch_first = False
    wrapped = gem.GEMWrapper(theirs, tokenizer, **options).eval()
    wrapped.encode_text = lambda texts: text[None]  # the same embeddings, without its own template
    with torch.no_grad():
        return wrapped(images, ["a name"] * len(text))


def over_input(maps: Tensor, images: Tensor) -> Tensor:
    return min_max(F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False))


def test_gem_torch_agrees_by_default() -> None:
    """Neither side is told how many blocks: its depth of 7 edits 6."""
    model, backbone, images, text = twelve_blocks()
    theirs = gem_torch(model, images, text)
    assert_same_maps(over_input(ours("gem", backbone, images, text), images), theirs)


def test_gem_torch_agrees_with_other_options_on_a_picture_that_is_not_square() -> None:
    """Its `ss_attn_temp` multiplies."""
    vit = plain_vit("open_clip")
    theirs = gem_torch(open_clip_model(), vit.images, vit.text, depth=4, ss_attn_iter=2, ss_attn_temp=20.0)
    maps = vit.ours("gem", depth=3, iterations=2, temperature=0.05)
    assert_same_maps(over_input(maps, vit.images), theirs)


# --------------------------------------------------------------------------------------------------------- CLIP Surgery
def patches(vit: PlainVit, image: Tensor, depth: int) -> Tensor:
    """The path's patches `[N, D]`, unit norm."""
    entering = vit.entering(image)
    start = len(vit.blocks) - depth
    path = entering[start]
    for x, block in zip(entering[start:-1], vit.blocks[start:], strict=True):
        path = path + block.branch(x, lambda q, k, v: attend(v, v, v))
    return F.normalize(vit.read(path[vit.prefix :]), dim=1)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize(("depth", "requested"), [(1, 1), (2, 2), (None, 6), (None, 99)])
def test_several_prompts(kind: str, depth: int | None, requested: int) -> None:
    """Feature surgery as published, element by element; a depth beyond the tower's means all of it."""
    vit = plain_vit(kind)

    def one(image: Tensor) -> Tensor:
        found = patches(vit, image, depth or len(vit.blocks))  # [N, D]
        likeness = vit.backbone.encode_image(image[None])[0] @ vit.text.T  # [P]
        relative = torch.softmax(2 * likeness, dim=0)
        relative = relative / relative.mean()
        features = found[:, None] * vit.text[None] * relative[None, :, None]  # [N, P, D]
        return (features - features.mean(dim=1, keepdim=True)).sum(dim=-1)

    expected = vit.maps(one)
    assert_equal(vit.ours("clip_surgery", depth=requested), expected)
    if requested == 6:
        assert_equal(vit.ours("clip_surgery"), expected)


@pytest.mark.parametrize("kind", TOWERS)
def test_one_prompt_is_read_against_the_empty_string(kind: str) -> None:
    vit = plain_vit(kind)
    direction = vit.text[:1] - vit.backbone.encode_text([""])  # [1, D]
    expected = vit.maps(lambda image: patches(vit, image, len(vit.blocks)) @ direction.T)
    assert_equal(vit.ours("clip_surgery", vit.text[:1]), expected)


class Counting:
    """A text tower that remembers what it was asked."""

    def __init__(self, encode: Any) -> None:
        self.encode, self.requested = encode, []

    def __call__(self, texts: Any) -> Tensor:
        self.requested += texts
        return self.encode(texts)


@pytest.mark.parametrize("name", ["cat", "cat~a wall"])
def test_the_localizer_puts_the_empty_name_in_the_prompts_templates(name: str) -> None:
    backbone = tower("vit")
    backbone.texts = Counting(backbone.texts)
    localizer = Localizer(backbone, method="clip_surgery", templates=["a {}.", "no {}?"])
    picture = torch.randint(0, 256, (20, 24, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8).numpy()
    found = localizer([picture, picture], [name])[0]
    localizer(picture, [name])
    assert backbone.texts.requested.count("a .") == backbone.texts.requested.count("no ?") == 1

    def averaged(word: str) -> Tensor:
        return F.normalize(backbone.texts.encode([f"a {word}.", f"no {word}?"]).mean(dim=0), dim=0)

    images = backbone.normalize(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
    trace = backbone.trace(images, methods.get("clip_surgery").needs())
    # A contrast takes away what all texts share: there is no second time.
    shared = averaged("a wall" if "~" in name else "")
    text = (averaged("cat") - shared)[None, None]  # [1, 1, D]
    ctx = Context(lambda: images, text, trace, backbone, empty_name=lambda: torch.zeros_like(shared))
    raw = methods.get("clip_surgery").function(ctx)
    expected = min_max(F.interpolate(raw, size=(20, 24), mode="bilinear", align_corners=False))[0]
    assert_rounded(found.maps, expected, backbone, STRETCHED)


def test_a_method_that_asks_nothing_redundant_costs_no_text() -> None:
    backbone = tower("vit")
    backbone.texts = Counting(backbone.texts)
    localizer = Localizer(backbone, method="maskclip", templates=["{}"], min_presence=0)
    localizer(torch.zeros(20, 24, 3, dtype=torch.uint8).numpy(), ["cat"])
    assert backbone.texts.requested == ["cat"]


# What the class token is made of: the decomposition, Grad-ECLIP and M2IB against their equations in plain loops
def norm_and_projection(vit: PlainVit) -> tuple[Any, Tensor]:
    norm = vit.backbone.last_norm
    return norm, vit.backbone.read_normed(torch.eye(len(norm.weight)))  # [d, D]


def terms(vit: PlainVit, image: Tensor) -> tuple[list[list[list[Tensor]]], list[Tensor], list[Tensor], Tensor]:
    """What the class token is the sum of: `brought[block][head][token]`, start and MLPs, biases, and it, each `[d]`."""
    tokens = vit.entering(image)
    brought, direct, biases = [], [tokens[0][0]], []
    for block, x in zip(vit.blocks, tokens, strict=False):
        of_block = []
        for head, (q, k, v) in enumerate(block.project(x)):
            weights = torch.softmax(q[0] @ k.T / q.shape[1] ** 0.5, dim=0)
            columns = slice(head * q.shape[1], (head + 1) * q.shape[1])
            of_block.append(
                [weight * block.out.weight[:, columns] @ row for weight, row in zip(weights, v, strict=True)]
            )
        brought.append(of_block)
        biases.append(block.out.bias)
        middle = x[0] + block.out.bias + sum(term for head in of_block for term in head)
        direct.append(block.mlp_branch(middle))
    return brought, direct, biases, tokens[-1][0]


def share_of(vit: PlainVit, full: Tensor, term: Tensor, parts: int | None = None) -> Tensor:
    """`[P]` what a term of the class token adds; the mean is spread over start, MLPs and `parts`; None: a bias."""
    ln, projection = norm_and_projection(vit)
    deviation = (full.var(unbiased=False) + ln.eps).sqrt()
    length = (ln(full) @ projection).norm()
    mean = 0 if parts is None else full.mean() / ((2 * len(vit.blocks) + 1) * parts)
    return (ln.weight * (term - mean) / deviation) @ projection @ vit.text.T / length


@pytest.mark.parametrize("kind", ["tiny", "open_clip"])
@pytest.mark.parametrize("blocks", [1, 2, 4])
@torch.no_grad()
def test_the_equation_of_decomposition(kind: str, blocks: int) -> None:
    vit = plain_vit(kind)

    def one(image: Tensor) -> Tensor:
        brought, _, _, full = terms(vit, image)
        heads = [head for of_block in brought[-blocks:] for head in of_block]
        parts = len(brought[0]) * len(heads[0])
        return torch.stack(
            [sum(share_of(vit, full, head[i], parts) for head in heads) for i in range(1, len(heads[0]))]
        )

    maps = vit.ours("decomposition", blocks=blocks)
    assert_equal(maps, vit.maps(one))
    if blocks == 4:
        assert torch.equal(maps, vit.ours("decomposition"))


@pytest.mark.parametrize("kind", ["tiny", "open_clip"])
@torch.no_grad()
def test_all_terms_are_the_cosine(kind: str) -> None:
    """The map's sum over all blocks, the direct terms, what the class token brings itself, and ln_post's bias."""
    vit = plain_vit(kind)
    ln, projection = norm_and_projection(vit)
    sums = vit.ours("decomposition", blocks=len(vit.blocks)).sum(dim=(-2, -1))  # [B, P]
    for image, summed in zip(vit.images, sums, strict=True):
        brought, direct, biases, full = terms(vit, image)
        part = [head[0] for of_block in brought for head in of_block]
        parts = len(brought[0]) * len(brought[0][0])
        rest = sum(share_of(vit, full, term, parts) for term in part)
        rest = rest + sum(share_of(vit, full, term) for term in biases)
        rest = rest + sum(share_of(vit, full, term, 1) for term in direct)
        length = (ln(full) @ projection).norm()
        rest = rest + ln.bias @ projection @ vit.text.T / length
        cosine = vit.backbone.encode_image(image[None])[0] @ vit.text.T
        torch.testing.assert_close(summed + rest, cosine, rtol=0, atol=2e-5)


# ----------------------------------------------------------------------------------------------------------- Grad-ECLIP
def embedding(vit: PlainVit, x: Tensor, gathered: Tensor) -> Tensor:
    """What the tower says of tokens `[T, d]` entering the last block when the class token gathers `[d]`."""
    block = vit.blocks[-1]
    token = x[0] + block.out(gathered)
    token = token + block.mlp_branch(token)
    return F.normalize(vit.read(token[None])[0], dim=0)


def oracle(vit: PlainVit, one_head: bool) -> Tensor:
    block = vit.blocks[-1]

    def one(image: Tensor) -> Tensor:
        x = vit.entering(image)[-2]
        q, k, v = (torch.cat(part, dim=1) for part in zip(*block.project(x), strict=True))  # each [T, d]
        widths = (
            [(0, q.shape[1])]
            if one_head
            else [(h * (n := q.shape[1] // block.heads), (h + 1) * n) for h in range(block.heads)]
        )
        parts = []
        for start, end in widths:
            weights = torch.softmax(q[0, start:end] @ k[:, start:end].T / (end - start) ** 0.5, dim=0)
            parts.append(sum(weight * row for weight, row in zip(weights, v[:, start:end], strict=True)))
        gathered = torch.cat(parts)
        query, keys = (block.out(q[0]), block.out(k)) if one_head else (q[0], k)
        near = [float(F.cosine_similarity(query, key, dim=0)) for key in keys[1:]]
        near = [(value - min(near)) / (max(near) - min(near)) for value in near]
        columns = []
        for direction in vit.text:
            with torch.enable_grad():
                leaf = gathered.clone().requires_grad_(True)
                (g,) = torch.autograd.grad(embedding(vit, x, leaf) @ direction, leaf)
            columns.append(torch.stack([(g * value).sum() * n for value, n in zip(v[1:], near, strict=True)]))
        return torch.stack(columns, dim=1)  # [N, P]

    return vit.maps(one)


@pytest.mark.parametrize("kind", ["tiny", "open_clip"])
@pytest.mark.parametrize("published", [False, True])
def test_the_equation_of_grad_eclip(kind: str, published: bool) -> None:
    vit = plain_vit(kind)
    maps = vit.ours("grad_eclip", published=published)
    assert_equal(maps, oracle(vit, published))
    if not published:
        assert torch.equal(maps, vit.ours("grad_eclip"))


# ----------------------------------------------------------------------------------------------------------------- M2IB
def passed(vit: PlainVit, image: Tensor, direction: Tensor, beta: float, steps: int) -> Tensor:
    """`[T]` nats of each token."""
    depth = len(vit.blocks)
    number = max(1, 10 * depth // 12)  # of 12 blocks, those up to `resblocks[9]`
    z = vit.entering(image)[number]  # [T, d]
    alpha, generator = torch.full_like(z, 5.0), torch.Generator().manual_seed(0)
    first, second = torch.zeros_like(z), torch.zeros_like(z)  # Adam's moments
    nats = torch.zeros_like(z)
    for step in range(1, steps + 1):
        with torch.enable_grad():
            leaf = alpha.clone().requires_grad_(True)
            share = 1 / (1 + torch.exp(-leaf))
            nats = -0.5 * (1 + torch.log((1 - share) ** 2) - (share * z) ** 2 - (1 - share) ** 2)
            noise = torch.randn(10, *z.shape, generator=generator)
            cosines = []
            for sample in noise:
                x = share * z + (1 - share) * sample
                for block in vit.blocks[number:]:
                    x = block.forward(x)
                cosines.append(F.normalize(vit.read(x[:1])[0], dim=0) @ direction)
            loss = beta * nats.mean() - sum(cosines) / len(cosines)
            (gradient,) = torch.autograd.grad(loss, leaf)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        alpha = alpha - (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return nats.detach().sum(dim=1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("tiny", {}),  # ten steps of ten draws take a second for each block that the loops go through
        *((kind, {"beta": 1.0, "steps": 1}) for kind in ("tiny", "open_clip", "deep")),
        *((kind, {"beta": 0.01, "steps": 4}) for kind in ("tiny", "open_clip", "deep")),
    ],
    ids=str,
)
def test_the_equation_of_m2ib(kind: str, options: dict[str, Any]) -> None:
    vit = plain_vit(kind)
    beta, steps = options.get("beta", 0.1), options.get("steps", 10)

    def one(image: Tensor) -> Tensor:
        return torch.stack([passed(vit, image, direction, beta, steps)[1:] for direction in vit.text], dim=1)

    ours, expected = vit.ours("m2ib", **options), vit.maps(one)
    if steps == 1:
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)  # no step was made: the text has no say yet
    else:
        torch.testing.assert_close(ours, expected, rtol=5e-3, atol=5e-3 * float(expected.max()))
        assert (ours[:, 0] - ours[:, 1]).abs().max() > 0.02 * ours.max()
