"""Which names are in a picture: presence scores, and why the others are not found.

A calibrated model gives presence scores itself. For others, a name is compared with a bank of other names.

The bank is ImageNet's 1,000 names, COCO's 80 and sentences for pictures of no object ("a photo.", "a photo of the
sky."). Each name of the bank is embedded in one sentence, "a photo of a {}.", and so is the name asked for, whatever
templates a localizer has, so that all are compared in the same way. A model embeds these about 1,100 sentences once.
They are kept on disk beside single names (`CLIPLOC_CACHE`), also with `text_cache=False`, as none of the user's names
is among them.

Rivals of a name are the bank without

* names that share a synonym with it, and names that the model cannot know;
* the tenth of the bank whose embeddings are nearest to the name's. They are mostly related: "golden retriever" must not
  count against "dog".

    presence = σ(logit scale · (cosine of the name − cosine of the rival at rank 3 %))

So 0.5 means: 3 % of the rivals fit the picture as well or better. It is not a probability. Several objects in a picture
do not suppress each other, as they would in a softmax. Both shares were chosen on the tuning pictures; see
docs/presence.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cliploc import prompts
from cliploc.localization import PresenceRule
from cliploc.pipeline.modes import undisturbed
from cliploc.pipeline.prepare import Prepared
from cliploc.pipeline.texts import Texts
from cliploc.values import TextSet

if TYPE_CHECKING:
    from cliploc.text_cache import TextCache

VERSION = 1  # part of a run's identity: raise it when the bank or the rule changes
# Both were chosen on the tuning pictures; see `Bank`.
PASS_SHARE = 0.03
KIN_SHARE = 0.1
NAMES_AT_ONCE = 128  # bounds memory: views × names × rivals
Reasons = tuple[str | None, ...]


class Standing(NamedTuple):
    """How names compare with their rivals in each of V views of a picture."""

    presence: Tensor  # [V, P] in 0–1; at 0.5, 3 % of the rivals fit as well or better
    rank: Tensor  # [V, P] int64, 1 where no rival fits better
    probability: Tensor  # [V, P] softmax of the name among its rivals, at the model's logit scale


class Bank:
    """The names that a localizer's names compete with; they are embedded when they are first needed.

    Args:
        cache: gives the cache of the bank's embeddings on disk when they are needed, or None.
        pass_share: share of the rivals that fit a picture as well as or better than a name with presence 0.5.
        kin_share: share of the bank that is no rival of a name, because its meaning is related.

    Example:
        >>> from cliploc.backbones import create
        >>> bank = Bank(Texts(create("mini"), prompts.DEFAULT_TEMPLATES))
        >>> cat = bank.standing(torch.eye(1280)[:1], [("cat", "kitten")])
        >>> cat.presence.shape, bool(cat.rank >= 1)
        (torch.Size([1, 1]), True)
    """

    def __init__(
        self,
        texts: Texts,
        cache: Callable[[], TextCache | None] = lambda: None,
        pass_share: float = PASS_SHARE,
        kin_share: float = KIN_SHARE,
    ) -> None:
        self.backbone = texts.backbone
        self._cache, self._pass_share, self._kin_share = cache, pass_share, kin_share
        self._names = texts.beside(prompts.DEFAULT_TEMPLATES)
        self._plain = texts.beside(("{}",))
        self._words: list[frozenset[str]] = []  # of each entry of the bank
        self._embeddings: Tensor | None = None  # [K, D]
        self._no_rivals: dict[tuple[str, ...], Tensor] = {}  # name with its synonyms → entries of the bank

    @undisturbed
    def embed(self, told: Callable[[int, int], None] = lambda *_: None) -> None:
        """Embeds the bank, if it is not embedded yet; with a large text tower it takes a minute on a CPU."""
        self._embedded(told)

    @undisturbed
    def standing(self, views: Tensor, synonyms: Sequence[tuple[str, ...]]) -> Standing | None:
        """How names compare with their rivals in each view of a picture.

        Args:
            views: `[V, D]` unit-norm embeddings of a picture and its windows.

        Returns:
            The `Standing`, each tensor `[V, P]`; None if the model knows no name of the bank.
        """
        bank = self._embedded()
        if not len(bank):
            return None
        asked = self._names.embed(_text_set(synonyms))  # [P, D]
        rivals = views @ bank.T  # [V, K]
        parts = []
        for start in range(0, len(synonyms), NAMES_AT_ONCE):
            words, embeddings = synonyms[start : start + NAMES_AT_ONCE], asked[start : start + NAMES_AT_ONCE]
            is_rival = torch.ones(len(words), len(bank), dtype=torch.bool, device=bank.device)  # [p, K]
            for row, name, embedding in zip(is_rival, words, embeddings, strict=True):
                row[self._no_rivals_of(name, embedding)] = False
            passing = (self._pass_share * is_rival.sum(dim=1)).ceil().long().clamp(min=1)  # [p] the rank that counts
            parts.append(_standing(views @ embeddings.T, rivals, is_rival, passing, self.backbone.logit_scale))
        return Standing(*(torch.cat(of_parts, dim=1) for of_parts in zip(*parts, strict=True)))

    def _embedded(self, told: Callable[[int, int], None] = lambda *_: None) -> Tensor:
        """`[K, D]` of the names and sentences that the model can know."""
        if self._embeddings is None:
            named = [entry for entry in bank_names() if self._names.unknown_reason(entry[:1]) is None]
            said = [entry for entry in prompts.no_object_sentences() if self._plain.unknown_reason(entry[:1]) is None]
            self._words = [frozenset(map(str.casefold, entry)) for entry in (*named, *said)]
            cache, parts, making = self._cache(), [], False
            left = len(named) + len(said)

            def count(more: int) -> None:
                nonlocal left, making
                left, making = left - more, True
                told(more, left)

            for entries, texts in ((named, self._names), (said, self._plain)):
                after = left - len(entries)
                if entries:
                    parts.append(texts.embed_together(_text_set([entry[:1] for entry in entries]), cache, count))
                if making and left > after == 0:  # these came from the cache, the others did not
                    told(left, 0)
                left = after
            self._embeddings = torch.cat(parts) if parts else torch.zeros(0, self.backbone.embedding_size)
        return self._embeddings

    def _no_rivals_of(self, words: tuple[str, ...], embedding: Tensor) -> Tensor:
        """The indices of the bank's entries that are no rivals of a name."""
        if words not in self._no_rivals:
            bank, own = self._embedded(), {word.casefold() for word in words}
            same = torch.tensor([bool(own & entry) for entry in self._words], device=bank.device)  # [K]
            nearness = (bank @ embedding).masked_fill(same, -math.inf)
            kin = nearness.topk(int(self._kin_share * len(bank))).indices
            self._no_rivals[words] = torch.cat([same.nonzero()[:, 0], kin])
        return self._no_rivals[words]


def bank_names() -> list[tuple[str, ...]]:
    """The names of the bank, each with its synonyms, which exclude it as a rival of the same name."""
    imagenet = [(one.name, *one.synonyms) for one in prompts.imagenet_classes()]
    there = {entry[0] for entry in imagenet}
    return imagenet + [entry for entry in prompts.coco_names() if entry[0] not in there]


def _text_set(synonyms: Sequence[tuple[str, ...]]) -> TextSet:
    """Names for `Texts`, which has the templates."""
    return TextSet(tuple(words[0] for words in synonyms), tuple(synonyms), ())


def _standing(own: Tensor, rivals: Tensor, is_rival: Tensor, passing: Tensor, logit_scale: float) -> Standing:
    """How names compare with the bank.

    Args:
        own: `[V, P]` cosines of the names.
        rivals: `[V, K]` cosines of the bank.
        is_rival: `[P, K]` bool.
        passing: `[P]` the rank of the rival whose cosine has presence 0.5.
    """
    cosines = rivals[:, None].masked_fill(~is_rival, -math.inf)  # [V, P, K]
    best = cosines.topk(int(passing.max()), dim=2).values
    bar = best.gather(2, (passing - 1)[None, :, None].expand(len(own), -1, 1))[..., 0]  # [V, P]
    logits = logit_scale * torch.cat([own[..., None], cosines], dim=2)
    return Standing(
        presence=(logit_scale * (own - bar)).sigmoid(),
        rank=1 + (cosines > own[..., None]).sum(dim=2),
        probability=logits.softmax(dim=2)[..., 0],
    )


# --------------------------------------------------------------------------------------------------------- weighing
@dataclass(frozen=True)
class Evidence:
    """The scores of the names in whole pictures, and which names are absent."""

    scores: Tensor  # [B, P] cosines
    presence: Tensor | None  # [B, P] presence scores; None where there are none
    absences: list[Reasons]  # for each picture and name, why it is not there; None where it is
    rule: PresenceRule | None  # where the presence scores come from; None where there are none
    # [B, P] ranks in the bank, the best of whole picture and windows; None unless the rule is "bank"
    ranks: Tensor | None
    probabilities: Tensor | None  # [B, P], as `ranks`


def weigh(
    batch: Sequence[Prepared],
    embedding: Tensor,
    names: Tensor,
    windows: Sequence[Tensor],
    texts: Texts,
    min_presence: float,
    bank: Bank | None = None,
) -> Evidence:
    """Compares pictures `[B, D]` and the windows `[W, D]` of each with their names `[B, P, D]`.

    If the model is not calibrated, the bank gives the presence scores; without a bank there are none.
    """
    scores, backbone = torch.einsum("bd,bpd->bp", embedding, names), texts.backbone  # [B, P]
    presence, ranks, probabilities = backbone.presence(scores), None, None
    rule: PresenceRule | None = None
    if presence is not None:
        rule = "calibrated"
        presence = torch.stack(
            [
                with_windows(of_whole, backbone.presence(seen @ asked.T))
                for of_whole, seen, asked in zip(presence, windows, names, strict=True)
            ]
        )
    elif bank is not None:
        views = [torch.cat([whole[None], seen]) for whole, seen in zip(embedding, windows, strict=True)]  # [1 + W, D]
        standings = [bank.standing(seen, item.texts.synonyms) for seen, item in zip(views, batch, strict=True)]
        of_bank = [one for one in standings if one is not None]  # None for all or for none
        if of_bank:
            rule = "bank"
            presence = torch.stack([with_windows(one.presence[0], one.presence[1:]) for one in of_bank])
            ranks = torch.stack([one.rank.amin(dim=0) for one in of_bank])
            probabilities = torch.stack([one.probability.amax(dim=0) for one in of_bank])
    if presence is not None:  # cosines of two pictures are far above those that presence is calibrated on
        shown = [[texts.by_exemplars(words) for words in item.texts.synonyms] for item in batch]
        presence = presence.masked_fill(torch.tensor(shown, device=presence.device), 1.0)
    # For each picture and name, why it is not there. Numbers are compared as tensors, and taken from them all at once.
    of_texts = {id(item.texts): item.texts for item in batch}  # mostly one for all
    unknown = {key: tuple(map(texts.unknown_reason, one.synonyms)) for key, one in of_texts.items()}
    absences: list[list[str | None]] = [list(unknown[id(item.texts)]) for item in batch]
    if texts.background is not None:
        rivals, rival = (embedding @ texts.background.T).max(dim=1)  # [B]
        for b, p in (rivals[:, None] >= scores).nonzero().tolist():
            if absences[b][p] is None:
                absences[b][p] = f"the background {texts.background_synonyms[int(rival[b])][0]!r} fits better"
    if presence is not None:
        values, of_bank_ranks = presence.tolist(), None if ranks is None else ranks.tolist()
        for b, p in (presence < min_presence).nonzero().tolist():
            if absences[b][p] is None:
                rank = None if of_bank_ranks is None else of_bank_ranks[b][p]
                absences[b][p] = absence(values[b][p], min_presence, rank)
    return Evidence(scores, presence, [tuple(absent) for absent in absences], rule, ranks, probabilities)


def with_windows(whole: Tensor, windows: Tensor | None) -> Tensor:
    """Presence scores of a picture's names, with the best window taken into account.

    A small object fits a window better than the whole picture. But W windows have W times as many chances of a false
    match, so the odds of the best window are divided by W.

    Args:
        whole: `[P]` of the whole picture.
        windows: `[W, P]` of its windows; None or W = 0 where there are none.

    Returns:
        `[P]`, not below `whole`.

    Example:
        >>> with_windows(torch.tensor([0.2, 0.5]), torch.tensor([[0.9, 0.5], [0.1, 0.5]])).round(decimals=3)
        tensor([0.8180, 0.5000])
    """
    if windows is None or not len(windows):
        return whole
    odds = windows.amax(dim=0).logit(eps=1e-6) - math.log(len(windows))  # [P]
    return torch.maximum(whole, odds.sigmoid())


def absence(presence: float, least: float, rank: int | None = None) -> str:
    """Why a name whose presence score is below the least is not found; with its rank in the bank, if there is one.

    Example:
        >>> absence(0.2, 0.5, 312)
        'not in the picture: presence 0.20 (uncalibrated, rank 312) is below 0.5'
    """
    of_bank = "" if rank is None else f" (uncalibrated, rank {rank})"
    return f"not in the picture: presence {presence:.2f}{of_bank} is below {least:g}"
