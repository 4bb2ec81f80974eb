"""What a prediction depends on: the thing, or the background. A picture needs one pass, and the tower's tail for swaps.

The background is swapped in the features of a middle stage: cells outside the thing's box are those of other pictures,
and only the stages after it run again. Shapes: P names, D the joint space's size, h × w a grid, n swaps.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.find import prompts
from cliploc.find.calibration import Logistic
from cliploc.find.classify import known_names
from cliploc.find.prepare import Prepared, Request
from cliploc.find.running import torch_modes
from cliploc.localizer import Localizer
from cliploc.support.reporter import Reporter
from cliploc.towers.tower import Needs, Trace, block_at
from cliploc.values import Floats, TextSet

DONORS = 5  # other pictures whose features stand for the background
BARE = 3  # of these, whose features do without the thing that they show
SWAPS = 2  # other pictures whose pixels do
HEAT = (28, 28)  # cells of the evidence that is kept, over the picture
FULL = 0.98  # share of the input from which a thing leaves no background
STAGES = {"mini": -5, "mini-vit": -3}  # whose features are swapped; chosen on ilsvrc_val_dev
# The chance that a prediction is lost when the background is replaced, from the logarithm of the box's share of the
# picture, the margin over the second name, the score of the box's map, and the mean margin with other backgrounds; the
# baseline's from the first two. Fitted on ilsvrc_val_dev by tools/audit_study.py.
RISK = {"mini": Logistic(2.6064, (-1.3406, -1.3892, -3.8004, -31.272))}
BASELINE = {"mini": Logistic(-1.2175, (-3.0861, -18.612))}


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture after its pass."""

    item: Prepared
    trace: Trace  # with the stage whose features are swapped
    cosines: Tensor  # [P]
    first: int  # the name that is predicted
    second: int  # the next one
    xyxy: Floats  # [m, 4] the thing's boxes; of one that is not found, the picture
    box: str  # where they are from: "found", "true" or "none"
    score: float  # of the map of the found box; 0 without one
    evidence: Tensor  # [h, w] the method's map of the first name minus the second, where it is positive

    @property
    def margin(self) -> float:
        """How far the first name lies above the second."""
        return float(self.cosines[self.first] - self.cosines[self.second])

    def cover(self, like: Tensor) -> Tensor:
        """`[h, w]`, the part of each cell of a grid over the input that the thing covers."""
        (height, width), frame = like.shape[-2:], self.item.frames[0]
        scale = np.array([width / frame.input_hw[1], height / frame.input_hw[0]] * 2)
        covered = torch.zeros(height, width)
        for x0, y0, x1, y1 in frame.to_input(self.xyxy) * scale:  # in cells
            down, across = (
                ((torch.arange(n) + 1.0).clamp(max=end) - torch.arange(n).clamp(min=start)).clamp(0, 1)
                for start, end, n in ((y0, y1, height), (x0, x1, width))
            )
            covered = covered.maximum(down[:, None] * across)
        return covered.to(like.device)

    def outside(self) -> float:
        """The share of the evidence outside the thing."""
        total = self.evidence.sum()
        return float((self.evidence * (1 - self.cover(self.evidence))).sum() / total) if total > 0 else 0.0

    def area(self) -> float:
        """The share of the input that the thing covers."""
        return float(self.cover(torch.empty(64, 64)).mean())


class Auditor:
    """Sees pictures with a localizer, and what it predicts with other backgrounds."""

    def __init__(self, localizer: Localizer, names: Any) -> None:
        self.given = known_names(localizer.flow, names, 1)  # of which the model knows each
        parsed = prompts.parse(self.given, localizer.templates)
        self.names, backbone = parsed.names, localizer.backbone
        self.localizer, self._backbone = localizer, backbone
        self.texts = localizer.embed_names(self.given)  # [P, D]
        # The map of one's own embedding is hot on a shortcut, too; so a thing is found by its name where that is known.
        own = [isinstance(name, prompts.Embedded) for name in self.given]
        known = [str(name) if backbone.unknown_reason(str(name)) is None else name for name in self.given]
        self._sought = [prompts.parse([name], localizer.templates) for name in (known if any(own) else self.given)]
        self.calibrated = backbone.name in RISK and not any(own)
        vit = backbone.kind == "vit"
        usual = block_at(Fraction(1, 2), backbone.depth) if vit else min(-2, backbone.middle_stage)  # type: ignore[attr-defined]
        self._stage = STAGES.get(backbone.name, usual)
        self._needs = Needs(features=(self._stage,), dense=int(vit))
        fitted = backbone.name if backbone.name in RISK else "mini"
        self._risk, self._baseline = RISK[fitted], BASELINE[fitted]

    def see(self, requests: Iterable[Request], true: Any, reporter: Reporter) -> Iterator[Seen]:
        """The pictures that can be read; `true`: id → the true boxes `[m, 4]` of its things, if known."""

        def choose(trace: Trace) -> tuple[TextSet, Tensor]:
            first, second = (self.texts @ trace.embedding[0]).topk(2).indices.tolist()
            return self._sought[first], self.texts[first] - self.texts[second]

        for item, trace, found, explained in self.localizer.find_after(requests, choose, self._needs, reporter):
            cosines = self.texts @ trace.embedding[0]
            first, second = cosines.topk(2).indices.tolist()
            boxes, scores = (found.boxes, found.boxes.score) if found.judged is None else found.judged[4:6]
            xyxy, box = np.array([[0, 0, *item.picture.image.size]], float), "none"
            if len(boxes):
                xyxy, box = boxes.xyxy[:1].astype(float), "found"
            if len(given := true(item.id, self.names[first])):
                xyxy, box = given, "true"
            score = float(scores[0]) if len(boxes) else 0.0
            yield Seen(item, trace, cosines, first, second, xyxy, box, score, explained.relu())

    def swapped(self, seen: Seen, donors: Sequence[Seen]) -> Tensor:
        """`[DONORS + BARE + 1, D]` with the features of donors outside the thing; those without the donors' things; and
        the background alone: where a thing is without, or the background is alone, features are their mean outside it.
        """
        features, inside = self._stage_of(seen), self._inside(seen)
        whole = torch.cat([self._stage_of(donor) for donor in donors])  # [n, C, h, w]
        bare = torch.cat([self._bare(donor) for donor in donors[:BARE]])
        mixed = torch.cat([features * inside + torch.cat([whole, bare]) * (1 - inside), self._bare(seen)])
        with torch_modes(self._backbone.device):
            entering = {block: tokens.expand(len(mixed), -1, -1) for block, tokens in seen.trace.entering.items()}
            return self._backbone.head(mixed, replace(seen.trace, entering=entering), self._stage)

    def _stage_of(self, seen: Seen) -> Tensor:
        return seen.trace.features[self._stage].float()  # [1, C, h, w]

    def _inside(self, seen: Seen) -> Tensor:
        return seen.cover(seen.trace.features[self._stage])  # [h, w]

    def _bare(self, seen: Seen) -> Tensor:
        """`[1, C, h, w]` of the background alone."""
        features, outside = self._stage_of(seen), 1 - self._inside(seen)
        around = (features * outside).sum(dim=(2, 3)) / outside.sum().clamp(min=1e-6)  # [1, C]
        return features * outside + around[..., None, None] * (1 - outside)

    def facts(self, seen: Seen, swapped: Tensor) -> list[float]:
        """What the risk is told from; see `RISK`."""
        margin = float(self.margins(swapped[:DONORS], seen.first).mean())
        return [float(np.log(max(seen.area(), 1e-4))), seen.margin, seen.score, margin]

    def chances(self, facts: Sequence[float]) -> tuple[float, float]:
        """The risk that the prediction is lost with another background, and the baseline's."""
        row = np.array([facts])
        return float(self._risk(row)[0]), float(self._baseline(row[:, :2])[0])

    def margins(self, embeddings: Tensor, name: int) -> Tensor:
        """How far a name lies above the best other one, `[n]`."""
        cosines = embeddings @ self.texts.T  # [n, P]
        others = cosines.clone()
        others[:, name] = -torch.inf
        return cosines[:, name] - others.amax(dim=1)

    def surroundings(self, seen: Seen) -> Tensor:
        """`[D]` unit norm, what the tower reads outside the thing, by how much of the evidence it is."""
        places = self._backbone.dense(seen.trace)[0]  # [D, h, w]
        outside = 1 - seen.cover(places)
        weight = outside * F.interpolate(seen.evidence[None, None].float(), outside.shape, mode="area")[0, 0]
        weight = weight if weight.sum() > 0 else outside
        return F.normalize((places * weight).sum(dim=(1, 2)), dim=0)

    def pixels(self, seen: Seen, donors: Sequence[Seen]) -> Tensor:
        """`[n + 1, 3, H, W]` uint8: the thing on the pictures of donors, and the background with a blank for it."""
        picture = seen.item.inputs[0]
        inside = seen.cover(picture).round().to(torch.uint8)
        mean = (picture * (1 - inside)).float().sum(dim=(1, 2)) / (1 - inside).sum().clamp(min=1)
        blank = mean.to(torch.uint8)[:, None, None]
        on_others = [picture * inside + donor.item.inputs[0] * (1 - inside) for donor in donors]
        return torch.stack([*on_others, picture * (1 - inside) + blank * inside])

    def embed(self, pixels: Tensor) -> Tensor:
        """`[n, D]` of inputs `[n, 3, H, W]` uint8."""
        with torch_modes(self._backbone.device):
            return self._backbone.encode_image(self._backbone.normalize(pixels.to(self._backbone.device).float() / 255))


def heat_of(seen: Seen) -> bytes:
    """The evidence over the picture in `HEAT` cells, as levels 0–255."""
    height, width = seen.item.frames[0].input_hw
    over_input = F.interpolate(seen.evidence[None, None].float(), (height, width), mode="bilinear")[0]
    heat = seen.item.frames[0].map_to_picture(over_input, HEAT)[0]
    return bytes((heat / heat.max().clamp(min=1e-9) * 255).round().to(torch.uint8).cpu().numpy().tobytes())
