"""The word side of Grad-ECLIP against its equation, one block, head and token at a time."""

import copy
import re
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc import Localizer
from cliploc.images.exemplars import Exemplar
from cliploc.towers._open_clip_parts import OpenClipText
from cliploc.towers.open_clip_resnet import OpenClipResNet
from tests.commands import CAT
from tests.tiny import seeded
from tests.towers.seam import TEXT, perturb
from tests.towers.small_clip import small_clip, tokenizer

IDS = torch.tensor([98, 7, 31, 5, 60, 99, 0, 0, 0, 0, 0, 0])  # start, the tokens of "red car.", end
TOKENS = {"": [], "red": [7, 31], "red car": [7, 31, 5], "red car.": [7, 31, 5, 60]}
VISION = {"layers": 1, "width": 48, "head_width": 12, "patch_size": 8, "image_size": 40}


def tokenize(texts: list[str]) -> Tensor:
    rows = [[98, *TOKENS[text], 99] for text in texts]
    return torch.tensor([row + [0] * (12 - len(row)) for row in rows])


@pytest.fixture(scope="module")
def text() -> Any:
    model = perturb(seeded(lambda: open_clip.CLIP(24, VISION, {**TEXT, "layers": 4}), 0))
    return OpenClipText(model.eval().requires_grad_(False), tokenize)


def expected(model: Any, image: Tensor) -> Tensor:
    """Shares of the tokens between start and end."""
    layers, end = list(model.transformer.resblocks), 5
    x = model.token_embedding(IDS) + model.positional_embedding  # [T, d]
    read = []
    for block in layers:
        heads = block.attn.num_heads
        rows = block.ln_1(x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        q, k, v = rows.chunk(3, dim=1)
        size = q.shape[1] // heads
        gathered = []
        for h in range(heads):
            at = slice(h * size, (h + 1) * size)
            scores = q[:, at] @ k[:, at].T / size**0.5
            seen = torch.ones_like(scores).tril() > 0
            gathered.append(scores.masked_fill(~seen, -torch.inf).softmax(dim=1) @ v[:, at])
        joined = torch.cat(gathered, dim=1)
        joined = joined if read else joined.detach().requires_grad_()
        read.append((q, k, v, joined))
        x = x + joined @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        x = x + block.mlp(block.ln_2(x))
    cosine = F.normalize(model.ln_final(x)[end] @ model.text_projection, dim=0) @ F.normalize(image, dim=0)
    gradients = torch.autograd.grad(cosine, [one[3] for one in read])
    total = torch.zeros(len(x))
    for (q, k, v, _), gradient in zip(read, gradients, strict=True):
        near = torch.stack([F.cosine_similarity(q[end], key, dim=0) for key in k])
        near = (near - near.min()) / (near.max() - near.min())
        total += torch.stack([(gradient[end] * value).sum() * n for value, n in zip(v, near, strict=True)]).detach()
    shares = total[1:end].relu()
    return shares / shares.sum().clamp(min=1e-30)  # all are 0 where nothing speaks for the match


def test_the_equation(text: Any) -> None:
    for seed in range(4):
        image = torch.randn(24, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            found = text.word_shares("red car.", image)
        of_tokens = expected(text.model, image)
        wanted = torch.stack([of_tokens[:2].sum(), of_tokens[2], of_tokens[3]])
        assert [word for word, _ in found] == ["red", "car", "."]
        torch.testing.assert_close(torch.tensor([one for _, one in found]), wanted, rtol=1e-4, atol=1e-5)


def test_the_end_may_be_a_token_of_another_number(text: Any) -> None:
    """As in files of transformers; the highest number is then a word's."""
    image = torch.randn(24, generator=torch.Generator().manual_seed(0))
    wanted = text.word_shares("red car.", image)
    model = copy.deepcopy(text.model)
    model.text_pool_type, model.text_eos_id = "eos", 3
    with torch.no_grad():
        model.token_embedding.weight[3], model.token_embedding.weight[97] = model.token_embedding.weight[[99, 7]]

    def renumbered(texts: list[str]) -> Tensor:
        return torch.tensor([{7: 97, 99: 3}.get(one, one) for one in tokenize(texts).flatten().tolist()]).view(-1, 12)

    assert OpenClipText(model, renumbered).word_shares("red car.", image) == wanted


def test_words_are_those_of_clips_tokenizer() -> None:
    """Rare words are of several tokens; what does not fit into the context has no share."""
    model = small_clip()
    part = OpenClipText(copy.deepcopy(model), tokenizer())
    image = torch.randn(24, generator=torch.Generator().manual_seed(1))
    sentence = "a photo of 2 xylophonists' dogs, Größe 40."
    shares = part.word_shares(sentence, image)
    assert [word for word, _ in shares] == ["a", "photo", "of", "2", "xylophonists'", "dogs", ",", "Größe", "40", "."]
    assert sum(one for _, one in shares) == pytest.approx(1)
    longer = part.word_shares("cat " * 30, image)
    assert len(longer) == 30
    assert [one for _, one in longer[14:]] == [0.0] * 16
    assert part.word_shares(" ", image) == []


def test_another_text_tower_says_nothing(text: Any) -> None:
    other = OpenClipText(copy.copy(text.model), tokenize)
    other.model.text_pool_type = "last"
    assert other.word_shares("red car.", torch.ones(24)) is None


def test_a_localizer_reads_the_sentence_that_fits_best() -> None:
    backbone = OpenClipResNet(small_clip(), tokenizer(), "small", copied=True)
    localizer = Localizer(backbone, method="cam", templates=["a photo of a {}.", "art of the {}"])
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    sentences = [t.replace("{}", word) for word in ("red car", "automobile") for t in localizer.templates]
    embedding = torch.from_numpy(localizer(photo, ["any"]).embedding)
    best = sentences[int((backbone.encode_text(sentences) @ embedding).argmax())]
    found = localizer.word_shares(photo, "red car|automobile")
    assert found is not None
    assert [word for word, _ in found] == re.findall(r"\w+|\.", best)
    wanted = backbone.text.word_shares(best, embedding)
    assert [one for _, one in found] == pytest.approx([one for _, one in wanted], abs=1e-4)
    visible = Localizer(backbone, method="cam", exemplars=[Exemplar("cup", str(CAT))])
    assert visible.word_shares(photo, "cup") is None
