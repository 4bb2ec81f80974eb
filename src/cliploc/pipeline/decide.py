"""Which names are found in a picture, and why the others are not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cliploc.localization import PresenceRule
from cliploc.pipeline.bank import Bank
from cliploc.pipeline.prepare import Prepared
from cliploc.pipeline.tasks import Task
from cliploc.pipeline.texts import Texts
from cliploc.tower import Backbone

Reasons = tuple[str | None, ...]


@dataclass(frozen=True)
class Evidence:
    """The scores of the names in whole pictures, and which names are absent.

    Attributes:
        scores: `[B, P]` cosines.
        presence: `[B, P]` presence scores; None where there are none.
        absences: for each picture and name, why it is not there; None where it is.
        rule: where the presence scores come from; None where there are none.
        ranks: `[B, P]` ranks in the bank, the best of whole picture and windows; None unless the rule is "bank".
        probabilities: `[B, P]`, as `ranks`.
    """

    scores: Tensor
    presence: Tensor | None
    absences: list[Reasons]
    rule: PresenceRule | None
    ranks: Tensor | None
    probabilities: Tensor | None


def weigh(
    batch: Sequence[Prepared],
    embedding: Tensor,
    names: Tensor,
    windows: Sequence[Tensor],
    texts: Texts,
    backbone: Backbone,
    min_presence: float,
    bank: Bank | None = None,
) -> Evidence:
    """Compares pictures `[B, D]` and the windows `[W, D]` of each with their names `[B, P, D]`.

    If the model is not calibrated, the bank gives the presence scores; without a bank there are none.
    """
    scores = torch.einsum("bd,bpd->bp", embedding, names)  # [B, P]
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


def reasons_of(task: Task, item: Prepared, absent: Reasons, not_flat: Sequence[bool]) -> Reasons:
    """Why each name of a picture is not found by a task's method; None where it is. Boxes are not considered here."""
    reasons = []
    for words, reason, some in zip(item.texts.synonyms, absent, not_flat, strict=True):
        why = task.reason(words, reason)
        if why is None and not some:
            why = f"{task.method.name} finds no evidence for it: its map is flat"
        reasons.append(why)
    return tuple(reasons)
