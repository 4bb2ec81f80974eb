"""AttnLRP against the paper's equations and `lxt`; LibraGrad's theorem on a whole tower, and gradients by hand."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from timm.layers import GluMlp
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.localizer import Localizer
from cliploc.methods import Context, methods
from cliploc.methods._infra.backward import LIBRA, Backward
from cliploc.towers.tower import Needs, Trace
from tests.methods.peers import WrappedClip, tiny_scene
from tests.methods.plain_vit import PlainBlock, PlainVit, assert_equal, open_clip_model, plain_vit
from tests.methods.towers import tiny
from tests.tiny import raw_maps, tower


class Relevance(torch.autograd.Function):
    """z = f(inputs), whose backward pass takes R_z to R_i = i ⊙ Jᵀ(R_z / (n z)), n how many inputs share."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.function, ctx.inputs = function, [part.detach() for part in inputs]
        return function(*ctx.inputs).detach()

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:
        with torch.enable_grad():
            inputs = [part.clone().requires_grad_() for part in ctx.inputs]
            output = ctx.function(*inputs)
            gradients = torch.autograd.grad(output, inputs, relevance / (len(inputs) * output.detach()))
        return None, *(part.detach() * gradient for part, gradient in zip(inputs, gradients, strict=True))


def layer_norm(norm: Any, x: Tensor) -> Tensor:
    deviation = (x.detach().var(dim=-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    return (x - x.mean(dim=-1, keepdim=True)) / deviation * norm.weight + norm.bias


class Rules:
    """The rules of each operation, in float64, as denominators come near zero."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return Relevance.apply(lambda x: x @ weight.T + bias, x)

    def norm(self, norm: Any, x: Tensor) -> Tensor:
        return Relevance.apply(lambda x: layer_norm(norm, x), x)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        both = torch.stack([a, b])
        return Relevance.apply(lambda both: both.sum(dim=0), both)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return Relevance.apply(torch.matmul, a, b)

    def softmax(self, x: Tensor) -> Tensor:
        return Relevance.apply(lambda x: x.softmax(dim=-1), x)


class Gamma(Rules):
    """As `Rules`, with the γ rule in the blocks, output by output and term by term."""

    gamma = 0.3

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if len(x) == 1:  # the head, which reads the class token alone
            return super().linear(x, weight, bias)

        class Linear(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                ctx.x = x.detach()
                return ctx.x @ weight.T + bias

            @staticmethod
            def backward(ctx: Any, relevance: Tensor) -> Tensor:
                terms = ctx.x[..., None, :] * weight  # [T, out, in]
                sign = (terms.sum(dim=-1) + bias).sign()[..., None]
                terms = terms + Gamma.gamma * sign * (sign * terms).relu()
                offset = bias + Gamma.gamma * sign[..., 0] * (sign[..., 0] * bias).relu()
                return (terms * (relevance / (terms.sum(dim=-1) + offset))[..., None]).sum(dim=-2)

        return Linear.apply(x)


@dataclass
class Lxt(Rules):
    """The operations of the authors' package."""

    lf: Any

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.lf.linear_epsilon(x, weight, bias, 1e-12)

    def norm(self, norm: Any, x: Tensor) -> Tensor:
        return self.lf.layer_norm_grad_fn.apply(
            x, norm.weight, norm.bias, norm.eps, 1e-12
        )  # `layer_norm` fixes ε at 1e-6

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self.lf.add2(a, b, False, 1e-12)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return self.lf.matmul(a, b, False, 1e-12)

    def softmax(self, x: Tensor) -> Tensor:
        return self.lf.softmax(x, -1)


def through(block: PlainBlock, x: Tensor, rules: Rules, softmax: bool) -> Tensor:
    """A block's tokens `[T, d]`; relevance goes back by the rules."""
    size = x.shape[1] // block.heads
    rows = rules.linear(rules.norm(block.norm_1, x), block.weight, block.bias).split(size, dim=1)
    heads = []
    for h in range(block.heads):
        q, k, v = (rows[part * block.heads + h] for part in range(3))
        scores = rules.matmul(q, k.T) * 1.0  # relevance passes a constant factor
        weights = rules.softmax(passed(scores, scores / size**0.5))
        heads.append(rules.matmul(weights, v) if softmax else Relevance.apply(weights.detach().__matmul__, v))
    x = rules.add(x, rules.linear(torch.cat(heads, dim=1), block.out.weight, block.out.bias))
    mlp = block.mlp
    first, act, last = mlp if isinstance(mlp, torch.nn.Sequential) else (mlp.fc1, mlp.act, mlp.fc2)
    hidden = rules.linear(rules.norm(block.norm_2, x), first.weight, first.bias)
    return rules.add(x, rules.linear(passed(hidden, act(hidden)), last.weight, last.bias))


def passed(before: Tensor, after: Tensor) -> Tensor:
    """`after`, whose relevance passes unchanged to `before`."""
    return before + (after - before).detach()


def relevance(vit: PlainVit, rules: Rules, softmax: bool = True) -> Tensor:
    """`[B, P, h, w]`."""
    blocks = [doubled(block) for block in vit.blocks]
    last = copy.deepcopy(vit.backbone.last_norm).double()
    projection = vit.backbone.read_normed(torch.eye(last.weight.numel())).double()  # [d, D], linear
    maps = []
    for image in vit.images:
        for direction in vit.text.double():
            tokens = vit.entering(image)[0].double().requires_grad_()  # [T, d]
            x = tokens
            for block in blocks:
                x = through(block, x, rules, softmax)
            embedding = rules.linear(rules.norm(last, x[:1]), projection.T, torch.zeros_like(projection[0]))[0]
            terms = (F.normalize(embedding, dim=0) * direction).detach()  # s_t = Σ_d of them
            (found,) = torch.autograd.grad(embedding, tokens, terms)  # of a graph that lxt can read once
            maps.append(found[vit.prefix :].sum(dim=1).view(vit.grid))
    return torch.stack(maps).view(len(vit.images), len(vit.text), *vit.grid).float()


def doubled(block: PlainBlock) -> PlainBlock:
    parts = {name: copy.deepcopy(getattr(block, name)).double() for name in ("norm_1", "out", "norm_2", "mlp")}
    return replace(block, weight=block.weight.detach().double(), bias=block.bias.detach().double(), **parts)


@pytest.mark.parametrize("kind", ["tiny", "open_clip"])
def test_the_equations(kind: str) -> None:
    vit = plain_vit(kind)
    assert_equal(vit.ours("attnlrp"), relevance(vit, Rules()))
    assert_equal(vit.ours("attnlrp", softmax=False), relevance(vit, Rules(), softmax=False))


def test_the_gamma_rule() -> None:
    """In all linear layers of the blocks; CLIP's projection is a bare matrix without one."""
    vit = plain_vit("open_clip")
    expected = relevance(vit, Gamma())
    assert_equal(vit.ours("attnlrp", gamma=Gamma.gamma), expected)
    assert (expected - vit.ours("attnlrp")).abs().max() > 0.1 * expected.abs().max()


def test_lxt_agrees() -> None:
    lf = pytest.importorskip("lxt.explicit.functional", reason="needs lxt")
    vit = plain_vit("open_clip")
    assert_equal(vit.ours("attnlrp"), relevance(vit, Lxt(lf)))


# --------------------------------------------------------------------------------------------------------- LibraGrad
BALANCED = [method.name for method in methods if "libra" in method.options]


@pytest.mark.parametrize("kind", ["open_clip", "siglip"])
def test_inputs_and_biases_times_their_gradients_add_up(kind: str) -> None:
    """The paper's theorem, from the first block to the embedding before its length is divided out."""
    vit = plain_vit(kind)
    tower = vit.backbone
    biases = [p.requires_grad_() for name, p in tower.named_parameters() if name.endswith("bias")]
    latent = [p.requires_grad_() for name, p in tower.named_parameters() if name.endswith("latent")]
    x = vit.entering(vit.images[0])[0][None].clone().requires_grad_()

    def sources() -> tuple[Tensor, Tensor]:
        tokens = tower.resume(x, -tower.depth, Needs(tokens=(-1,)), vit.grid).tokens[-1]
        value = (tower.pool(tokens)[0] @ vit.text[0]).sum()
        gradients = torch.autograd.grad(value, [x, *biases, *latent], allow_unused=True)
        parts = zip([x, *biases, *latent], gradients, strict=True)
        return value, sum(((p * g).sum() for p, g in parts if g is not None), torch.zeros(()))

    value, plain = sources()
    with Backward(LIBRA):
        balanced_value, total = sources()
    torch.testing.assert_close(balanced_value, value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total, value, rtol=0, atol=1e-4 * float(value.detach().abs()) + 1e-5)
    assert (plain - value).abs() > 0.01 * value.abs()


def balanced(block: PlainBlock, x: Tensor, normed: Tensor | None = None) -> Tensor:
    """A block's tokens `[T, d]`; attention, deviations and gates are constants."""
    normed = layer_norm(block.norm_1, x) if normed is None else normed
    heads = [(q @ k.T / q.shape[1] ** 0.5).softmax(dim=1).detach() @ v for q, k, v in block.project_normed(normed)]
    x = x + block.out(torch.cat(heads, dim=1))
    first, _, last = block.mlp
    hidden = first(layer_norm(block.norm_2, x))
    gate = 0.5 * (1 + torch.erf(hidden / 2**0.5)).detach()
    return x + last(hidden * gate)


@pytest.mark.parametrize("at", [-1, -3])
def test_grad_cam_with_gradients_by_hand(at: int) -> None:
    vit, maps = plain_vit("open_clip"), []
    for image in vit.images:
        entering = vit.entering(image)[at - 1]
        normed = vit.blocks[at].norm_1(entering).detach().requires_grad_()  # [T, d]
        x = balanced(vit.blocks[at], entering, normed)
        for block in vit.blocks[len(vit.blocks) + at + 1 :]:
            x = balanced(block, x)
        head = vit.backbone.read_normed(layer_norm(vit.backbone.last_norm, x[:1]))[0]
        for score in F.normalize(head, dim=0) @ vit.text.T:
            (gradient,) = torch.autograd.grad(score, normed, retain_graph=True)
            maps.append((normed[1:] @ gradient[1:].mean(dim=0)).detach().view(vit.grid))
    expected = torch.stack(maps).view(len(vit.images), len(vit.text), *vit.grid)
    assert_equal(vit.ours("grad_cam", block=at, libra=True), expected)


def test_each_factor_of_a_gated_mlp_gets_half_and_its_gate_is_a_constant() -> None:
    """SwiGLU, as in DINOv3 and EVA: out(silu(a) · b), by hand."""
    torch.manual_seed(0)
    mlp = GluMlp(6, hidden_features=10, act_layer=torch.nn.SiLU, gate_last=False)
    x = torch.randn(3, 6, requires_grad=True)
    with Backward(LIBRA):
        (ours,) = torch.autograd.grad(mlp(x).sum(), x)
    with torch.no_grad():
        a, b = mlp.fc1(x).chunk(2, dim=1)
        out = mlp.fc2.weight.sum(dim=0) / 2  # [5]
        of_a, of_b = out * a.sigmoid() * b, out * a.sigmoid() * a
        expected = torch.cat([of_a, of_b], dim=1) @ mlp.fc1.weight
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BALANCED)
def test_each_method_reads_other_gradients(name: str) -> None:
    """Also those whose graph a trace would hold; without the option nothing changes."""
    vit, few = plain_vit("open_clip"), {"integrated_gradients": {"steps": 2}, "smooth_grad": {"samples": 2}}
    plain = vit.ours(name, **few.get(name, {}))
    balanced = vit.ours(name, libra=True, **few.get(name, {}))
    assert balanced.isfinite().all()
    assert not balanced.requires_grad
    assert (balanced - plain).abs().max() > 1e-3 * plain.abs().max()
    assert torch.equal(vit.ours(name, **few.get(name, {})), plain)


def test_a_text_is_a_value_and_a_cnn_is_refused() -> None:
    assert Localizer(tiny(), method="grad_cam", method_options={"libra": "true"}, text_cache=False)
    with pytest.raises(UsageError, match=r"grad_cam with libra=True needs a vit tower"):
        Localizer(tower("gap_cnn"), method="grad_cam", method_options={"libra": True}, text_cache=False)


# ------------------------------------------------------------------------------------------------------ pixel gradients
KINDS = ("gap_cnn", "attention_pool_cnn", "open_clip")


def scene(kind: str) -> tuple[Any, Tensor, Tensor, Any]:
    """Our tower, pictures, two texts `[P, D]`, and the peers' model, images → cosines `[B, P]`."""
    if kind == "open_clip":
        vit = plain_vit(kind)
        visual = open_clip_model().visual
        images = torch.randn(2, 3, *visual.image_size, generator=torch.Generator().manual_seed(0))  # its one size
        return vit.backbone, images, vit.text[:2], WrappedClip(visual, vit.text[:2]).eval()
    tiny = tiny_scene(kind, scale=1.0)
    return tiny.backbone, tiny.images, tiny.text, tiny.model


@pytest.mark.parametrize("kind", ["gap_cnn", "open_clip"])
@pytest.mark.parametrize("empty", ["mean", "black"])
def test_the_values_add_up_to_the_difference_of_the_scores(kind: str, empty: str) -> None:
    backbone, images, text, _ = scene(kind)
    start = backbone.normalize(torch.zeros_like(images)) if empty == "black" else torch.zeros_like(images)
    maps = raw_maps("integrated_gradients", backbone, images, text, steps=60, empty=empty)
    expected = (backbone.encode_image(images) - backbone.encode_image(start)) @ text.T
    torch.testing.assert_close(maps.sum(dim=(-2, -1)), expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


def test_a_path_of_known_integral() -> None:
    """f(x) = (Σ x³)/n of one pixel's cube has the integral x³: three Gauss points are exact for its gradient 3x²."""

    class Cubes:
        def encode_image(self, images: Tensor) -> Tensor:
            return images.pow(3).flatten(1)

    images = torch.randn(1, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    text = torch.ones(1, 1, images[0].numel())
    ctx = Context(lambda: images, text, Trace(torch.empty(0), (2, 3)), Cubes())  # type: ignore[arg-type]
    maps = methods.get("integrated_gradients").function(ctx, steps=3)
    torch.testing.assert_close(maps[0, 0], images[0].pow(3).sum(dim=0))


@pytest.mark.parametrize("kind", KINDS)
def test_captum_agrees_on_integrated_gradients(kind: str) -> None:
    attr = pytest.importorskip("captum.attr", reason="needs captum")
    backbone, images, text, model = scene(kind)
    maps = []
    for prompt in range(len(text)):
        pixels = attr.IntegratedGradients(model).attribute(images, target=prompt, n_steps=7).detach().float()
        h, w = backbone.grid(*images.shape[-2:])
        cells = pixels.sum(dim=1).unflatten(2, (w, -1)).unflatten(1, (h, -1))  # [B, h, pixels, w, pixels]
        maps.append(cells.sum(dim=(2, 4)))
    expected = torch.stack(maps, dim=1)
    found = raw_maps("integrated_gradients", backbone, images, text, steps=7)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_smooth_grad_is_the_mean_of_plain_gradients(kind: str, noise: float) -> None:
    backbone, images, text, model = scene(kind)
    draws = torch.randn(3, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    expected = []
    for picture in images:
        sigma = noise * float(picture.max() - picture.min())
        for prompt in range(len(text)):
            copies = [(picture + sigma * draw)[None].requires_grad_() for draw in draws]
            gradients = [torch.autograd.grad(model(copy)[0, prompt], copy)[0][0] for copy in copies]
            pixels = torch.stack(gradients).mean(dim=0).abs().sum(dim=0)  # [H, W]
            expected.append(F.adaptive_avg_pool2d(pixels[None], backbone.grid(*images.shape[-2:]))[0])
    wanted = torch.stack(expected).view(len(images), len(text), *expected[0].shape)
    found = raw_maps("smooth_grad", backbone, images, text, samples=3, noise=noise)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.max()))


def test_captums_noise_tunnel_agrees() -> None:
    """With the same random numbers: all copies in one batch, from the same seed."""
    attr = pytest.importorskip("captum.attr", reason="needs captum")
    backbone, images, text, model = scene("open_clip")
    picture, maps = images[:1], []
    sigma = 0.15 * float(picture.max() - picture.min())
    for prompt in range(len(text)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tunnel = attr.NoiseTunnel(attr.Saliency(model))
            gradient = tunnel.attribute(picture, target=prompt, nt_samples=6, stdevs=sigma, abs=False)
        pixels = gradient.detach().float().abs().sum(dim=1)
        maps.append(F.adaptive_avg_pool2d(pixels, backbone.grid(*picture.shape[-2:])))
    expected = torch.stack(maps, dim=1)
    found = raw_maps("smooth_grad", backbone, picture, text, samples=6)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.max()))
