"""LibraGrad: its theorem on a whole tower, its gradients by hand, and methods that read them."""

import pytest
import torch
from timm.layers import GluMlp
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.localizer import Localizer
from cliploc.saliency import methods
from cliploc.saliency._infra.backward import LIBRA, Backward
from cliploc.tower import Needs
from tests.saliency.plain_vit import PlainBlock, assert_equal, plain_vit
from tests.saliency.test_attnlrp import layer_norm
from tests.saliency.vits import tiny
from tests.tiny import tower

BALANCED = [method.name for method in methods if "libra" in method.options]


def test_every_gradient_method_on_vits_has_it() -> None:
    assert {"chefer", "finer_cam", "grad_cam", "grad_eclip", "integrated_gradients", "legrad"} <= set(BALANCED)
    assert not methods.get("attnlrp").options.keys() & {"libra"}
    assert "libra" not in methods.get("layer_cam").options


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


def through(block: PlainBlock, x: Tensor, normed: Tensor | None = None) -> Tensor:
    """A block's tokens `[T, d]`; attention, deviations and gates are constants."""
    normed = layer_norm(block.norm_1, x) if normed is None else normed
    rows = (normed @ block.weight.T + block.bias).split(x.shape[1] // block.heads, dim=1)
    heads = []
    for h in range(block.heads):
        q, k, v = (rows[part * block.heads + h] for part in range(3))
        heads.append((q @ k.T / q.shape[1] ** 0.5).softmax(dim=1).detach() @ v)
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
        x = through(vit.blocks[at], entering, normed)
        for block in vit.blocks[len(vit.blocks) + at + 1 :]:
            x = through(block, x)
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
