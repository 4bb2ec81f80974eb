"""Presence: which names are in a picture, and why others are not found, by comparison with a bank of other names.

The first look: how far the cosine of a name lies above those of its rivals in the bank, in the whole picture and in its
windows or regions (z-scores), becomes the chance that the name is there; see `calibration`. The bank has ImageNet's and
COCO's names, and sentences for pictures of no object. Each is embedded in one sentence, "a photo of a {}.", and so is
the requested name, whatever templates a localizer has. Rivals of a name are the bank without names that share a synonym
with it or its contrast, are read as it, or that the model cannot know, and without the tenth of the bank that is
nearest to it ("golden retriever" must not count against "dog"). Where nothing was fitted to a model whose text tower
reads its whole context each time (SigLIP's), the bank has every eighth of ImageNet's names: all take minutes.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cliploc.boxes.reasons import absence
from cliploc.find import prompts
from cliploc.find.calibration import UNSURE, Calibration
from cliploc.find.memory import cache_of
from cliploc.find.passes import of_names
from cliploc.find.prepare import Prepared
from cliploc.find.running import torch_modes
from cliploc.find.texts import ALIKE, Texts
from cliploc.localization import PresenceRule
from cliploc.values import Floats, TextSet

VERSION = 1  # raise it when the bank or the rule changes
EVERY = 8  # of so many of ImageNet's names the bank has one where nothing was fitted; docs/studies/presence.md
RELATED_SHARE = 0.1  # of the bank: what is no rival of a name, as its meaning is related; chosen on tuning pictures
Reasons = tuple[str | None, ...]


class Rivals(NamedTuple):
    """Names and the bank that they compete with."""

    names: Tensor  # [P, D] their embeddings, unit norm
    bank: Tensor  # [K, D] those of the bank
    are_rivals: Tensor  # [P, K] bool, whether an entry of the bank is a rival of a name
    in_bank: Floats  # [P, 2] see `in_bank`
    contrasts: Tensor | None = None  # [P, D] as `Texts.contrasts`
    lift: Tensor | None = None  # [P] what is added to the z-scores of names; None: nothing
    stands_for: float = 1  # how many names of the whole bank an entry stands for, in ranks

    def z_scores(self, views: Tensor) -> Tensor:
        """`[V, P]`: how far names lie above their rivals in views `[V, D]`, in the rivals' standard deviations."""
        z = BankCosines.of(views @ self.bank.T).z_scores(views @ self.names.T, self.are_rivals)
        return z if self.lift is None else z + self.lift

    def z_scores_of(self, views: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """As `z_scores`, of one name `[n]` in each view `[n, D]`; and its rank among its rivals. Both `[n]`."""
        likeness, mask = (views * self.names[label]).sum(dim=1), self.are_rivals[label]  # [n], [n, K]
        cosines, some = views @ self.bank.T, mask.sum(dim=1)
        mean = cosines.masked_fill(~mask, 0).sum(dim=1) / some
        spread = (cosines - mean[:, None]).masked_fill(~mask, 0).square().sum(dim=1) / some
        rank = 1 + self.stands_for * ((cosines > likeness[:, None]) & mask).sum(dim=1)
        z = (likeness - mean) / spread.clamp(min=1e-12).sqrt()
        return (z if self.lift is None else z + self.lift[label]), rank


class BankCosines(NamedTuple):
    """Cosines of a bank in V views, of which any part may be rivals."""

    mean: Tensor  # [V, 1] of all, so that the squares are small
    centred: Tensor  # [V, K] how far each lies above it
    squares: Tensor  # [V, K]

    @classmethod
    def of(cls, cosines: Tensor) -> "BankCosines":
        """From cosines `[V, K]`."""
        mean = cosines.mean(dim=1, keepdim=True)
        return cls(mean, cosines - mean, (cosines - mean).square())

    def z_scores(self, likeness: Tensor, are_rivals: Tensor) -> Tensor:
        """`[V, P]`: how far cosines of names `[V, P]` lie above those of their rivals `[P, K]`, in deviations."""
        mask = are_rivals.to(likeness).T  # [K, P]
        mean = self.centred @ mask / mask.sum(dim=0)
        spread = (self.squares @ mask / mask.sum(dim=0) - mean.square()).clamp(min=1e-12).sqrt()
        return (likeness - self.mean - mean) / spread


def in_bank(likeness: Tensor, bank: BankCosines, others: Tensor, are_rivals: Tensor) -> Floats:
    """`[P, 2]` of names: their `bank_mean` and `bank_related`; see `calibration.OF_BOX`.

    From cosines of the bank's texts with them `[K, P]` and with each other `[K, K]`; `[P, K]` texts that are not the
    name itself, and rivals.
    """
    z, counted = bank.z_scores(likeness, are_rivals), others.T  # [K, P]
    mean = z.masked_fill(~counted, 0).sum(dim=0) / counted.sum(dim=0)
    related = z.masked_fill(~counted, -math.inf).topk(max(1, int(RELATED_SHARE * len(z))), dim=0).values.mean(dim=0)
    return torch.stack([mean, related], dim=1).double().cpu().numpy()


class Bank:
    """The names that a localizer's names compete with; they are embedded when they are first needed.

    Example:
        >>> from cliploc.towers import create
        >>> bank = Bank(Texts(create("mini"), prompts.DEFAULT_TEMPLATES))
        >>> bank.rivals([("cat", "kitten")]).z_scores(torch.eye(1280)[:1]).shape
        torch.Size([1, 1])
    """

    def __init__(self, texts: Texts, related_share: float = RELATED_SHARE, every: int = 1) -> None:
        self.backbone, self._related_share, self.every = texts.backbone, related_share, every
        self._texts = texts.beside(prompts.DEFAULT_TEMPLATES)
        self._embedding = threading.Lock()  # one thread embeds, others wait
        self._embeddings: Tensor | None = None  # [K, D]
        self._cosines: BankCosines | None = None  # of the bank's texts with each other, as every name needs it
        self._entries: dict[str, list[int]] = {}  # word → the entries of the bank that have it as a synonym
        self._last: tuple[object, Rivals] | None = None  # mostly all pictures have the same names

    @property
    def version(self) -> int | str:
        """Part of a run's identity."""
        return VERSION if self.every == 1 else f"{VERSION}, every {self.every} of ImageNet"

    def rivals(
        self,
        synonyms: Sequence[tuple[str, ...]],
        contrasts: Sequence[tuple[str, ...]] = (),
        lifts: Mapping[str, float] | None = None,
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
            names = self._texts.embed(texts)  # [P, D]
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
            are_rivals.scatter_(1, near.topk(int(self._related_share * len(bank))).indices, False)
            self._cosines = BankCosines.of(bank @ bank.T) if self._cosines is None else self._cosines
            features, contrasted = in_bank(likeness.T, self._cosines, not_it, are_rivals), self._texts.contrasts(texts)
            stands_for = len(bank_names()) / len(bank_names(self.every))
            rivals = Rivals(names, bank, are_rivals, features, contrasted, stands_for=stands_for)
            if lifts:
                rows = self._texts.embed(_text_set([(name,) for name in lifts]))  # [n, D]
                same_text = names @ rows.T > ALIKE  # [P, n]
                rivals = rivals._replace(lift=(same_text * rows.new_tensor([*lifts.values()])).sum(dim=1))
        self._last = key, rivals
        return rivals

    def embed(self, progress: Callable[[int, int], None] = lambda *_: None) -> Tensor:
        """`[K, D]` of the names and sentences that the model can know, kept: a large text tower needs a minute."""
        with self._embedding:
            if self._embeddings is None:
                template, names = prompts.DEFAULT_TEMPLATES[0], bank_names(self.every)
                texts = [(entry, template.replace("{}", entry[0])) for entry in names]
                texts += [(entry, entry[0]) for entry in prompts.packaged_entries("no_object.txt")]
                known = [one for one in texts if self._texts.unknown_reason(one[0][:1]) is None]
                self._entries.clear()  # it may have been stopped before
                for number, (entry, _) in enumerate(known):
                    for word in dict.fromkeys(map(str.casefold, entry)):
                        self._entries.setdefault(word, []).append(number)
                cache = cache_of(self.backbone)
                told = (lambda *_: None) if self.backbone.weights_file is None else progress  # the package's are quick
                sentences = tuple(sentence for _, sentence in known)
                self._embeddings = self._texts.embed_sentences(sentences, cache, told)
            return self._embeddings


def bank_names(every: int = 1) -> list[tuple[str, ...]]:
    """The names of the bank (one of `every` of ImageNet's), each with its synonyms, which exclude it as a rival."""
    imagenet = [(class_name.name, *class_name.synonyms) for class_name in prompts.imagenet_classes()]
    names = {entry[0] for entry in imagenet}
    return imagenet[::every] + [entry for entry in prompts.packaged_entries("coco.txt") if entry[0] not in names]


def _text_set(synonyms: Sequence[tuple[str, ...]], contrasts: Sequence[tuple[str, ...]] = ()) -> TextSet:
    """Names for `Texts`, which has the templates."""
    return TextSet(tuple(words[0] for words in synonyms), tuple(synonyms), (), tuple(contrasts))


# --------------------------------------------------------------------------------------------------- which are there
Compared = tuple[Floats, Rivals]  # `calibration.OF_NAME` `[P, 2]` of a picture's names, and their rivals


@dataclass(frozen=True)
class Evidence:
    """The scores of the names in whole pictures, and which names are absent."""

    scores: Tensor  # [B, P] cosines
    presence: Tensor | None  # [B, P] chances; None where there are none
    absences: list[Reasons]  # for each picture and name, why it is not there; None where it is
    rule: PresenceRule | None  # whether the chances are fitted to the model; None where there are none
    compared: list[Compared] | None  # for each picture; None without presence


@dataclass(frozen=True)
class Presence:
    """How a flow decides which names are in pictures."""

    texts: Texts
    min_presence: float
    bank: Bank | None  # None: there is no presence, and all names that the model can know are there
    calibration: Calibration
    second_look: bool  # whether it decides, and this look only which names it looks at

    def of(self, batch: Sequence[Prepared], embedding: Tensor, windows: Sequence[Tensor]) -> Evidence:
        """Compares pictures `[B, D]`, and the windows or regions `[W, D]` of each, with their names."""
        names = of_names(batch, self.texts.embed)  # [B, P, D]
        scores = torch.einsum("bd,bpd->bp", embedding, names)  # [B, P]
        compared = self._compared(batch, embedding, windows)
        if compared is None:
            return Evidence(scores, None, self._absences(batch, embedding, scores, None, None), None, None)
        features = [of_picture for of_picture, _ in compared]
        presence = torch.from_numpy(np.stack([*map(self.calibration.first, features)])).to(scores)
        # Cosines of two pictures are far above those that presence is calibrated on.
        presence = presence.masked_fill(_of_words(batch, self.texts.by_exemplars, presence), 1.0)
        unknown = _of_words(batch, self.texts.presence_unknown, presence)
        pairs = zip(batch, embedding, strict=True)
        learnt = torch.stack([self.texts.learnt_presence(item.texts, view) for item, view in pairs]).to(presence)
        presence = torch.fmax(presence.masked_fill(unknown, math.nan), learnt)
        low = presence < self.min_presence
        if self.second_look:
            seen = np.stack([self.calibration.passes(of_picture, self.min_presence) for of_picture in features])
            passes, alike = torch.from_numpy(seen).to(scores.device), learnt >= min(UNSURE, self.min_presence)
            low = (presence < 1) & ~torch.where(unknown, alike, passes | alike)
        absences = self._absences(batch, embedding, scores, presence, low)
        return Evidence(scores, presence, absences, self.rule, compared)

    @property
    def rule(self) -> PresenceRule:
        """Whether the chances are fitted to the model."""
        return "calibrated" if self.texts.backbone.name in self.calibration.models else "bank"

    def _compared(
        self, batch: Sequence[Prepared], embedding: Tensor, windows: Sequence[Tensor]
    ) -> list[Compared] | None:
        """See `Evidence.compared`; None without a bank, or if the model knows no name of it."""
        if self.bank is None:
            return None
        compared = []
        for item, full, seen in zip(batch, embedding, windows, strict=True):
            rivals = self.bank.rivals(item.texts.synonyms, item.texts.contrasts, self.calibration.lifts)
            if rivals is None:
                return None
            z = rivals.z_scores(torch.cat([full[None], seen]))  # [1 + W, P]
            compared.append((torch.stack([z.amax(dim=0), z[0]], dim=1).double().cpu().numpy(), rivals))
        return compared

    def _absences(
        self,
        batch: Sequence[Prepared],
        embedding: Tensor,
        scores: Tensor,
        presence: Tensor | None,
        low: Tensor | None,  # [B, P] bool, the names whose presence is too low
    ) -> list[Reasons]:
        """For each picture and name, why it is not there; of several reasons the first."""
        of_texts = {id(item.texts): item.texts for item in batch}  # mostly one for all
        reasons = {key: self.texts.unknown_reasons(texts) for key, texts in of_texts.items()}
        absences = [list(reasons[id(item.texts)]) for item in batch]
        # A second look compares what is inside each box with the contrast instead, as a picture may show both.
        for b, item in enumerate(() if self.second_look else batch):
            against = self.texts.contrasts(item.texts)
            for p in [] if against is None else (against @ embedding[b] >= scores[b]).nonzero().flatten().tolist():
                absences[b][p] = absences[b][p] or f"{item.texts.contrasts[p][0]!r} fits better"
        if presence is not None and low is not None:
            values = presence.tolist()
            for b, p in low.nonzero().tolist():
                absences[b][p] = absences[b][p] or absence(values[b][p], self.min_presence, self.rule)
        return [tuple(of_picture) for of_picture in absences]


def _of_words(batch: Sequence[Prepared], holds: Callable[[tuple[str, ...]], bool], like: Tensor) -> Tensor:
    """`[B, P]` bool, whether something holds for a picture's names."""
    return torch.tensor([[holds(words) for words in item.texts.synonyms] for item in batch], device=like.device)
