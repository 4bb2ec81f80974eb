"""Which names are in a picture: how they compare with a bank of others, and why some are not found.

With a second look the bank decides which names are looked for. Without one, a calibrated model gives presence scores
itself, and for other models they come from the bank: ImageNet's and COCO's names, and sentences for pictures of no
object. Each is embedded in one sentence, "a photo of a {}.", and so is the requested name, whatever templates a
localizer has. Rivals of a name are the bank without names that share a synonym with it or its contrast, are read as it,
or that the model cannot know, and without the tenth of the bank that is nearest to it ("golden retriever" must not
count against "dog").

    presence = σ(logit scale · (cosine of the name − cosine of the rival at rank 3 %))

So 0.5 means: 3 % of the rivals fit the picture as well or better. It is not a probability; see docs/presence.md.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cliploc.boxes.reasons import absence
from cliploc.find import prompts
from cliploc.find.calibration import UNSURE, Calibration
from cliploc.find.prepare import Prepared
from cliploc.find.texts import ALIKE, Texts
from cliploc.find.threads import torch_modes
from cliploc.localization import PresenceRule
from cliploc.values import Floats, TextSet

if TYPE_CHECKING:
    from cliploc.find.memory import TextCache

VERSION = 1  # part of a run's identity: raise it when the bank or the rule changes
# Both were chosen on the tuning pictures; see `Bank`.
PASS_SHARE = 0.03
KIN_SHARE = 0.1
NAMES_AT_ONCE = 128  # bounds memory: views × names × rivals
NO_LIFTS: Mapping[str, float] = MappingProxyType({})
Reasons = tuple[str | None, ...]


class Standing(NamedTuple):
    """How names compare with their rivals in each of V views of a picture."""

    presence: Tensor  # [V, P] in 0–1; at 0.5, 3 % of the rivals fit as well or better
    rank: Tensor  # [V, P] int64, 1 where no rival fits better
    probability: Tensor  # [V, P] softmax of the name among its rivals, at the model's logit scale


class Rivals(NamedTuple):
    """Names and the bank that they compete with."""

    names: Tensor  # [P, D] their embeddings, unit norm
    bank: Tensor  # [K, D] those of the bank
    are_rivals: Tensor  # [P, K] bool, whether an entry of the bank is a rival of a name
    of_bank: Floats  # [P, 2] see `over_bank`
    contrasts: Tensor | None = None  # [P, D] as `Texts.contrasts`
    lift: Tensor | None = None  # [P] what is added to how far names lie above their rivals; None: nothing

    def above(self, views: Tensor, cache: dict[Any, Any] | None = None) -> Tensor:
        """`[V, P]`: how far names lie above their rivals in views `[V, D]`, in the rivals' standard deviations.

        What depends on the views alone stays in `cache`.
        """
        cache, key = {} if cache is None else cache, ("crowd", len(self.bank))
        if key not in cache:
            cache[key] = Crowd.of(views @ self.bank.T)
        above = _above(views @ self.names.T, cache[key], self.are_rivals)
        return above if self.lift is None else above + self.lift

    def within(self, views: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """As `above`, of one name `[n]` in each view `[n, D]`; and its rank among its rivals. Both `[n]`."""
        likeness, mask = (views * self.names[label]).sum(dim=1), self.are_rivals[label]  # [n], [n, K]
        cosines, some = views @ self.bank.T, mask.sum(dim=1)
        mean = cosines.masked_fill(~mask, 0).sum(dim=1) / some
        spread = (cosines - mean[:, None]).masked_fill(~mask, 0).square().sum(dim=1) / some
        rank = 1 + ((cosines > likeness[:, None]) & mask).sum(dim=1)
        above = (likeness - mean) / spread.clamp(min=1e-12).sqrt()
        return (above if self.lift is None else above + self.lift[label]), rank


class Crowd(NamedTuple):
    """Cosines of a bank in V views, of which any part may be rivals."""

    centre: Tensor  # [V, 1] their mean, so that the squares are small
    away: Tensor  # [V, K] how far each lies above it
    squares: Tensor  # [V, K] of `away`

    @classmethod
    def of(cls, cosines: Tensor) -> Crowd:
        """From cosines `[V, K]`."""
        centre = cosines.mean(dim=1, keepdim=True)
        away = cosines - centre
        return cls(centre, away, away.square())


def _above(likeness: Tensor, crowd: Crowd, are_rivals: Tensor) -> Tensor:
    """`[V, P]`: how far cosines of names `[V, P]` lie above those of their rivals `[P, K]` in a bank."""
    mask = are_rivals.to(likeness).T  # [K, P]
    mean = crowd.away @ mask / mask.sum(dim=0)
    spread = (crowd.squares @ mask / mask.sum(dim=0) - mean.square()).clamp(min=1e-12).sqrt()
    return (likeness - crowd.centre - mean) / spread


def over_bank(likeness: Tensor, crowd: Crowd, others: Tensor, are_rivals: Tensor) -> Floats:
    """`[P, 2]` of names: their `bank_mean` and `bank_kin`; see `calibration.OF_BOX`.

    From cosines of the bank's texts with them `[K, P]` and with each other `[K, K]`; `[P, K]` texts that are not the
    name itself, and rivals.
    """
    above, counted = _above(likeness, crowd, are_rivals), others.T  # [K, P]
    mean = above.masked_fill(~counted, 0).sum(dim=0) / counted.sum(dim=0)
    kin = above.masked_fill(~counted, -math.inf).topk(max(1, int(KIN_SHARE * len(above))), dim=0).values.mean(dim=0)
    return torch.stack([mean, kin], dim=1).double().cpu().numpy()


class Bank:
    """The names that a localizer's names compete with; they are embedded when they are first needed.

    Example:
        >>> from cliploc.towers import create
        >>> bank = Bank(Texts(create("mini"), prompts.DEFAULT_TEMPLATES))
        >>> cat = bank.standing(torch.eye(1280)[:1], [("cat", "kitten")])
        >>> cat.presence.shape, bool(cat.rank >= 1)
        (torch.Size([1, 1]), True)
    """

    def __init__(
        self,
        texts: Texts,
        cache: Callable[[], TextCache | None] = lambda: None,  # that of the bank's embeddings on disk
        pass_share: float = PASS_SHARE,  # of the rivals: those that fit as well as or better than a name at 0.5
        kin_share: float = KIN_SHARE,  # of the bank: what is no rival of a name, because its meaning is related
    ) -> None:
        self.backbone = texts.backbone
        self._cache, self._pass_share, self._kin_share = cache, pass_share, kin_share
        self._names = texts.beside(prompts.DEFAULT_TEMPLATES)
        self._plain = texts.beside(("{}",))
        self._embedding = threading.Lock()  # one thread embeds, others wait
        self._embeddings: Tensor | None = None  # [K, D]
        self._crowd: Crowd | None = None  # of the bank's texts with each other, as every name needs it
        self._entries: dict[str, list[int]] = {}  # word → the entries of the bank that have it as a synonym
        self._last: tuple[object, Rivals] | None = None  # mostly all pictures have the same names

    def standing(
        self, views: Tensor, synonyms: Sequence[tuple[str, ...]], contrasts: Sequence[tuple[str, ...]] = ()
    ) -> Standing | None:
        """How names compare with rivals, not contrasts, in views `[V, D]` of norm 1; None if the model knows none."""
        with torch_modes(self.backbone.device):
            rivals = self.rivals(synonyms, contrasts)
            if rivals is None:
                return None
            of_bank = views @ rivals.bank.T  # [V, K]
            count = rivals.are_rivals.sum(dim=1)  # [P]
            passing = (self._pass_share * count).ceil().long().clamp(min=1)  # [P] the rank that counts
            parts = []
            for start in range(0, len(synonyms), NAMES_AT_ONCE):
                some = slice(start, start + NAMES_AT_ONCE)
                likeness = views @ rivals.names[some].T
                parts.append(
                    _standing(likeness, of_bank, rivals.are_rivals[some], passing[some], self.backbone.logit_scale)
                )
            return Standing(*(torch.cat(of_parts, dim=1) for of_parts in zip(*parts, strict=True)))

    def rivals(
        self,
        synonyms: Sequence[tuple[str, ...]],
        contrasts: Sequence[tuple[str, ...]] = (),
        lifts: Mapping[str, float] = NO_LIFTS,
    ) -> Rivals | None:
        """The embeddings of names and of the bank, and what competes; None if the model knows no name of the bank.

        A lift is that of a name, and of all others that the model reads as it.
        """
        key, last = (synonyms, contrasts, lifts), self._last  # of another thread's names, perhaps
        if last is not None and last[0] == key:
            return last[1]
        with torch_modes(self.backbone.device):
            bank = self.embed()
            if not len(bank):
                return None
            texts = _text_set(synonyms, contrasts)
            names = self._names.embed(texts)  # [P, D]
            are_rivals = torch.ones(len(names), len(bank), dtype=torch.bool, device=bank.device)
            likeness = names @ bank.T  # [P, K]
            for row, words, others, cosines in zip(are_rivals, synonyms, texts.contrasts, likeness, strict=True):
                same = [entry for word in words + others for entry in self._entries.get(word.casefold(), ())]
                if not same and (alike := (cosines > ALIKE).nonzero().flatten().tolist()):
                    # "dogs" is there as "dog", to a model that reads them alike. The last is COCO's, the plainest name.
                    same = [entry for entries in self._entries.values() if alike[-1] in entries for entry in entries]
                row[same] = False
            not_it = are_rivals.clone()
            near = likeness.masked_fill(~not_it, -math.inf)
            are_rivals.scatter_(1, near.topk(int(self._kin_share * len(bank))).indices, False)
            self._crowd = Crowd.of(bank @ bank.T) if self._crowd is None else self._crowd
            of_bank, contrasted = over_bank(likeness.T, self._crowd, not_it, are_rivals), self._names.contrasts(texts)
            rivals = Rivals(names, bank, are_rivals, of_bank, contrasted)
            if lifts:
                rows = self._names.embed(_text_set([(name,) for name in lifts]))  # [n, D]
                alike = names @ rows.T > ALIKE  # [P, n]
                rivals = rivals._replace(lift=(alike * rows.new_tensor([*lifts.values()])).sum(dim=1))
        self._last = key, rivals
        return rivals

    def embed(self, progress: Callable[[int, int], None] = lambda *_: None) -> Tensor:
        """`[K, D]` of the names and sentences that the model can know, kept: a large text tower needs a minute."""
        with self._embedding:
            if self._embeddings is None:
                self._embeddings = self._embedded(progress)
            return self._embeddings

    def _embedded(self, progress: Callable[[int, int], None]) -> Tensor:
        named = [entry for entry in bank_names() if self._names.unknown_reason(entry[:1]) is None]
        sentences = [entry for entry in prompts.no_object_sentences() if self._plain.unknown_reason(entry[:1]) is None]
        self._entries.clear()  # it may have been stopped before
        for number, entry in enumerate((*named, *sentences)):
            for word in dict.fromkeys(map(str.casefold, entry)):
                self._entries.setdefault(word, []).append(number)
        cache, parts, making = self._cache(), [], False
        left = len(named) + len(sentences)

        def count(more: int) -> None:
            nonlocal left, making
            left, making = left - more, True
            progress(more, left)

        for entries, texts in ((named, self._names), (sentences, self._plain)):
            after = left - len(entries)
            if entries:
                parts.append(texts.embed_together(_text_set([entry[:1] for entry in entries]), cache, count))
            if making and left > after == 0:  # these came from the cache, the others did not
                progress(left, 0)
            left = after
        return torch.cat(parts) if parts else torch.zeros(0, self.backbone.embedding_size)


def bank_names() -> list[tuple[str, ...]]:
    """The names of the bank, each with its synonyms, which exclude it as a rival of the same name."""
    imagenet = [(class_name.name, *class_name.synonyms) for class_name in prompts.imagenet_classes()]
    there = {entry[0] for entry in imagenet}
    return imagenet + [entry for entry in prompts.coco_names() if entry[0] not in there]


def _text_set(synonyms: Sequence[tuple[str, ...]], contrasts: Sequence[tuple[str, ...]] = ()) -> TextSet:
    """Names for `Texts`, which has the templates."""
    return TextSet(tuple(words[0] for words in synonyms), tuple(synonyms), (), tuple(contrasts))


def _standing(
    likeness: Tensor,  # [V, P] cosines of the names
    rivals: Tensor,  # [V, K] cosines of the bank
    is_rival: Tensor,  # [P, K] bool
    passing: Tensor,  # [P] the rank of the rival whose cosine has presence 0.5
    logit_scale: float,
) -> Standing:
    """How names compare with the bank."""
    cosines = rivals[:, None].masked_fill(~is_rival, -math.inf)  # [V, P, K]
    best = cosines.topk(int(passing.max()), dim=2).values
    bar = best.gather(2, (passing - 1)[None, :, None].expand(len(likeness), -1, 1))[..., 0]  # [V, P]
    logits = logit_scale * torch.cat([likeness[..., None], cosines], dim=2)
    return Standing(
        presence=(logit_scale * (likeness - bar)).sigmoid(),
        rank=1 + (cosines > likeness[..., None]).sum(dim=2),
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
    # What a second look reads: for each picture `calibration.OF_NAME` `[P, 2]` of its names, and their rivals; None
    # without a second look.
    looks: list[tuple[Floats, Rivals]] | None = None


def weigh(
    batch: Sequence[Prepared],
    embedding: Tensor,
    names: Tensor,
    windows: Sequence[Tensor],
    texts: Texts,
    min_presence: float,
    bank: Bank | None,
    calibration: Calibration | None,
    looks: list[tuple[Floats, Rivals]] | None,
) -> Evidence:
    """Compares pictures `[B, D]` and the windows `[W, D]` of each with their names `[B, P, D]`.

    If the model is not calibrated, the bank gives the presence scores; without a bank there are none. With `looks` and
    `calibration`, of a second look, presence is a chance, and a name that stays near its rivals in all views is absent.
    """
    scores, backbone = torch.einsum("bd,bpd->bp", embedding, names), texts.backbone  # [B, P]
    presence, ranks, probabilities = None, None, None
    rule: PresenceRule | None = None
    passes: Tensor | None = None  # [B, P] bool, the names that a second look looks at
    if calibration is None:
        presence = backbone.presence(scores)
    if looks is not None and calibration is not None:
        rule = "calibrated" if backbone.name in calibration.models else "bank"
        chances = [calibration.first(of_names) for of_names, _ in looks]
        presence = torch.from_numpy(np.stack(chances)).to(scores)
        seen = np.stack([calibration.passes(of_names, min_presence) for of_names, _ in looks])
        passes = torch.from_numpy(seen).to(scores.device)
    elif presence is not None:
        rule = "calibrated"
        presence = torch.stack(
            [
                with_windows(of_full, backbone.presence(seen @ of_names.T))
                for of_full, seen, of_names in zip(presence, windows, names, strict=True)
            ]
        )
    elif bank is not None:
        standings = [
            bank.standing(torch.cat([full[None], seen]), item.texts.synonyms, item.texts.contrasts)
            for full, seen, item in zip(embedding, windows, batch, strict=True)
        ]
        of_bank = [standing for standing in standings if standing is not None]  # None for all or for none
        if of_bank:
            rule = "bank"
            presence = torch.stack([with_windows(standing.presence[0], standing.presence[1:]) for standing in of_bank])
            ranks = torch.stack([standing.rank.amin(dim=0) for standing in of_bank])
            probabilities = torch.stack([standing.probability.amax(dim=0) for standing in of_bank])
    if presence is not None:  # cosines of two pictures are far above those that presence is calibrated on
        pictured = [[texts.by_exemplars(words) for words in item.texts.synonyms] for item in batch]
        presence = presence.masked_fill(torch.tensor(pictured, device=presence.device), 1.0)
        unknown = [[texts.presence_unknown(words) for words in item.texts.synonyms] for item in batch]
        unknown_names = torch.tensor(unknown, device=presence.device)  # [B, P]
        pairs = zip(batch, embedding, strict=True)
        learnt = torch.stack([texts.learnt_presence(item.texts, view) for item, view in pairs]).to(presence)
        presence = torch.fmax(presence.masked_fill(unknown_names, math.nan), learnt)
        if passes is not None:
            alike = learnt >= min(UNSURE, min_presence)
            passes = torch.where(unknown_names, alike, passes | alike)
        absent_names = presence < min_presence if passes is None else (presence < 1) & ~passes
    # For each picture and name, why it is not there. Numbers are compared as tensors, and taken from them all at once.
    of_texts = {id(item.texts): item.texts for item in batch}  # mostly one for all
    reasons = {key: texts.unknown_reasons(text) for key, text in of_texts.items()}
    absences: list[list[str | None]] = [list(reasons[id(item.texts)]) for item in batch]
    # A second look compares what is inside each box with the contrast instead, as a picture may show both.
    contrasts = {key: texts.contrasts(text) if looks is None else None for key, text in of_texts.items()}
    for b, item in enumerate(batch):
        against = contrasts[id(item.texts)]
        for p in [] if against is None else (against @ embedding[b] >= scores[b]).nonzero().flatten().tolist():
            absences[b][p] = absences[b][p] or f"{item.texts.contrasts[p][0]!r} fits better"
    if texts.background is not None:
        rivals, rival = (embedding @ texts.background.T).max(dim=1)  # [B]
        for b, p in (rivals[:, None] >= scores).nonzero().tolist():
            if absences[b][p] is None:
                absences[b][p] = f"the background {texts.background_synonyms[int(rival[b])][0]!r} fits better"
    if presence is not None:
        values, of_bank_ranks = presence.tolist(), None if ranks is None else ranks.tolist()
        for b, p in absent_names.nonzero().tolist():
            if absences[b][p] is None:
                rank = None if of_bank_ranks is None else of_bank_ranks[b][p]
                absences[b][p] = absence(values[b][p], min_presence, rank)
    return Evidence(scores, presence, [tuple(absent) for absent in absences], rule, ranks, probabilities, looks)


def looks_over(
    batch: Sequence[Prepared],
    embedding: Tensor,
    windows: Sequence[Tensor],
    bank: Bank,
    lifts: Mapping[str, float],
    cache: dict[Any, Any],
) -> list[tuple[Floats, Rivals]] | None:
    """See `Evidence.looks`; `cache`: of these pictures, for other names."""
    ranks = []
    for b, (item, full, seen) in enumerate(zip(batch, embedding, windows, strict=True)):
        rivals = bank.rivals(item.texts.synonyms, item.texts.contrasts, lifts)
        if rivals is None:  # so for all pictures
            return None
        views = torch.cat([full[None], seen])  # [1 + W, D]
        above = rivals.above(views, cache.setdefault(("views", b), {}))  # [1 + W, P]
        ranks.append((torch.stack([above.amax(dim=0), above[0]], dim=1).double().cpu().numpy(), rivals))
    return ranks


def with_windows(full: Tensor, windows: Tensor | None) -> Tensor:
    """Presence scores of a picture's names, with the best window taken into account.

    A small object fits a window better than the whole picture. But W windows have W times as many chances of a false
    match, so the odds of the best window are divided by W. From `[P]` and `[W, P]`; the result is not below `full`.

    Example:
        >>> with_windows(torch.tensor([0.2, 0.5]), torch.tensor([[0.9, 0.5], [0.1, 0.5]])).round(decimals=3)
        tensor([0.8180, 0.5000])
    """
    if windows is None or not len(windows):
        return full
    odds = windows.amax(dim=0).logit(eps=1e-6) - math.log(len(windows))  # [P]
    return torch.maximum(full, odds.sigmoid())
