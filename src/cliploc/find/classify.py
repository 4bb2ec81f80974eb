"""Zero-shot classification: which of some names fits each picture best."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

from torch import Tensor

from cliploc.errors import UsageError
from cliploc.find import prompts
from cliploc.find.flow import Flow
from cliploc.find.passes import check_finite
from cliploc.find.prepare import OnError, Prepared, Request, Unreadable, stacked
from cliploc.find.running import torch_modes
from cliploc.images.reading import Picture
from cliploc.options import is_integer, short
from cliploc.support.reporter import Reporter


class Classified(NamedTuple):
    """One of the names that a picture was compared with."""

    name: str  # as requested
    probability: float  # softmax over all names, at the model's logit scale
    cosine: float  # between picture and name


class Classification(NamedTuple):
    """The names that fit one picture best."""

    picture: Picture  # upright, with where it came from, and remarks on how it was read
    names: list[Classified]  # the best first


def known_names(flow: Flow, names: Sequence[str], top_k: int) -> Sequence[str]:
    """The names that the model can know, of a list or of "imagenet"; at least one."""
    if not is_integer(top_k, 1):
        raise UsageError(f"expected top_k to be a whole number of at least 1, got {short(top_k)}: the default is 5")
    if isinstance(names, str) and names == "imagenet":
        names = [known.name for known in prompts.imagenet_classes()]
    names = prompts.named(names)
    reasons = flow.texts.unknown_reasons(prompts.parse(names, contrasts=False))
    if all(reasons):
        raise UsageError(f"expected a name that {flow.backbone.name} knows: {reasons[0]}")
    return [name for name, reason in zip(names, reasons, strict=True) if reason is None]


def classifications(
    flow: Flow, requests: Iterable[Request], top_k: int, on_error: OnError, reporter: Reporter
) -> Iterator[Classification]:
    """One for each picture that can be read; all requests have the same names."""

    def work(batch: Sequence[Prepared | Unreadable], _: object) -> Callable[[], list[list[Classified]] | None]:
        readable = [item for item in batch if isinstance(item, Prepared)]
        ranked = _classified(flow, readable, top_k) if readable else None
        return lambda: ranked

    with closing(flow.preparation.computed(requests, work, on_error, reporter, on_error == "skip")) as pictures:
        for item, ranked, b in pictures:
            if isinstance(item, Prepared) and ranked is not None:
                yield Classification(item.picture, ranked[b])


def _classified(flow: Flow, batch: Sequence[Prepared], top_k: int) -> list[list[Classified]]:
    with torch_modes(flow.backbone.device):
        embedding, texts = embedded(flow, batch), batch[0].texts  # the texts are the same for all
        cosines = embedding @ flow.texts.embed(texts).T.to(embedding)  # [B, P]
        probabilities = (flow.backbone.logit_scale * cosines).softmax(dim=-1)  # [B, P]
        best = cosines.topk(min(top_k, len(texts))).indices  # [B, k]
        return [
            [Classified(texts.names[p], float(probabilities[b, p]), float(cosines[b, p])) for p in row.tolist()]
            for b, row in enumerate(best)
        ]


def embedded(flow: Flow, batch: Sequence[Prepared]) -> Tensor:
    """`[B, D]` of whole pictures at the scale that is read."""
    pixels = stacked([item.inputs[flow.read_scale] for item in batch])  # [B, 3, H, W] uint8
    images = flow.backbone.normalize(pixels.to(flow.backbone.device).float().div_(255))
    embedding = flow.backbone.encode_image(images)
    check_finite(embedding[:, None], batch, "an embedding", flow.backbone)
    return embedding
