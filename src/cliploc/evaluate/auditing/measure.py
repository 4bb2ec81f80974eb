"""What a prediction depends on: the thing, or the background. A picture needs one pass, and the tower's tail for swaps.

The background is swapped in the features of a middle stage: cells outside the thing's box are those of other pictures,
and only the stages after it run again. Shapes: P names, D the joint space's size, h × w a grid, n donors.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
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
from cliploc.find.tasks import what_runs
from cliploc.localizer import Localizer
from cliploc.options import Options
from cliploc.support.reporter import SILENT, Reporter
from cliploc.towers.tower import Needs, Trace, as_transformer, block_at
from cliploc.values import Floats, TextSet

DONORS = 12  # other pictures whose features stand for the background
CARRIED = 6  # of these, whose things get the picture's background
SWAPS = 2  # other pictures whose pixels do
TrueBoxes = Mapping[str, Sequence[tuple[str, Sequence[float]]]]  # picture → names and boxes
FULL = 0.98  # share of the input from which a thing leaves no background
STAGES = {"mini": -6, "mini-vit": -3}  # whose features are swapped; chosen on ilsvrc_val_dev
# The chance that a prediction is lost when the background is replaced, from the logarithm of the box's share of the
# input, the margin over the second name, and how often another name wins with other backgrounds (the mean sigmoid); the
# baseline's from the first two. Fitted on ilsvrc_val_dev by tools/audit_study.py --fit.
RISK = {"mini": Logistic(-3.5982, (-0.7303, -1.6533, 7.885))}
BASELINE = {"mini": Logistic(-1.1232, (-2.9871, -18.912))}


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture after its pass."""

    item: Prepared
    trace: Trace  # with the stage whose features are swapped
    first: int  # the name that is predicted
    second: int  # the next one
    margin: float  # over the second
    xyxy: Floats  # [m, 4] the thing's boxes; of one that is not found, the picture
    box: str  # where they are from: "found", "true", or "none" if they leave no background
    evidence: Tensor  # [h, w] the method's map of the first name minus the second, where it is positive

    def cover(self, height: int, width: int) -> Tensor:
        """`[h, w]`, the part of each cell of a grid over the input that the thing covers."""
        frame, covered = self.item.frames[0], torch.zeros(height, width)
        scale = np.array([width / frame.input_hw[1], height / frame.input_hw[0]] * 2)
        for x0, y0, x1, y1 in frame.to_input(self.xyxy) * scale:  # in cells
            down, across = (
                ((torch.arange(n) + 1.0).clamp(max=end) - torch.arange(n).clamp(min=start)).clamp(0, 1)
                for start, end, n in ((y0, y1, height), (x0, x1, width))
            )
            covered = covered.maximum(down[:, None] * across)
        return covered.to(self.evidence.device)

    def area(self) -> float:
        """The share of the input that the thing covers."""
        return float(self.cover(64, 64).mean())

    def outside(self) -> float:
        """The share of the evidence outside the thing."""
        beyond = self.evidence * (1 - self.cover(*self.evidence.shape))
        return float(beyond.sum() / self.evidence.sum().clamp(min=1e-9))


class Auditor:
    """Sees pictures with a model, and what it predicts with other backgrounds."""

    def __init__(self, options: Options, names: Any) -> None:
        usual = {} if options.method else {"recipe": options.recipe or "fast"}
        recipe, method, _ = what_runs(options.but(**usual))
        settings = options.filled({} if recipe is None else recipe.options).but(method=method.name, recipe=None)
        self.localizer = Localizer(**settings.but(min_presence=0.0).changed())  # so that a thing always has a box
        self._flow, self._backbone = self.localizer.flow, self.localizer.backbone
        self._task = self._flow.tasks.make(method.name, settings.method_options)
        self.given = known_names(self._flow, names, 1)
        self.names, self.texts = prompts.parse(self.given).names, self.localizer.embed_names(self.given)  # [P, D]
        # The map of one's own embedding is hot on a shortcut, too; so a thing is found by its name where that is known.
        own, name = any(isinstance(one, prompts.Embedded) for one in self.given), self._backbone.name
        words = [str(one) if own and not self._backbone.unknown_reason(str(one)) else one for one in self.given]
        self._sought = [prompts.parse([one], self.localizer.templates) for one in words]
        self.calibrated = name in RISK and not own and recipe is not None and recipe.name == "fast"
        vit = self._backbone.kind == "vit"
        self._stage = STAGES.get(name, block_at(Fraction(1, 2), as_transformer(self._backbone).depth) if vit else -2)
        self._needs = Needs(features=(self._stage,), dense=int(vit))
        self.risk, self.baseline = (fits.get(name, fits["mini"]) for fits in (RISK, BASELINE))

    def see(self, files: Mapping[str, Path], true: TrueBoxes, reporter: Reporter = SILENT) -> Iterator[Seen]:
        """The pictures that can be read, by id."""
        requests = (Request(name, path, self.given, name) for name, path in files.items())
        with closing(self._flow.preparation.stream(requests, "skip")) as pictures:
            for item in pictures:
                if isinstance(item, Prepared):
                    yield self._seen(item, true)
                else:
                    reporter.failed(item.source, item.error)

    def _seen(self, item: Prepared, true: TrueBoxes) -> Seen:
        def best(trace: Trace) -> tuple[list[float], list[int]]:
            cosines, names = (self.texts @ trace.embedding[0]).topk(2)
            return cosines.tolist(), names.tolist()

        def choose(trace: Trace) -> tuple[TextSet, Tensor]:
            _, (first, second) = best(trace)
            return self._sought[first], self.texts[first] - self.texts[second]

        trace, found, explained = self._flow.find_after(item, choose, self._task, self._needs)
        (cosine, runner_up), (first, second) = best(trace)
        boxes = found.boxes if found.judged is None else found.judged.candidates
        box, xyxy = "none", np.array([[0, 0, *item.picture.image.size]], float)
        if len(boxes):
            box, xyxy = "found", boxes.xyxy[:1].astype(float)
        if given := true.get(str(item.id)):
            own = [one for name, one in given if name == self.names[first]]
            box, xyxy = "true", np.array(own or [one for _, one in given], float)
        seen = Seen(item, trace, first, second, cosine - runner_up, xyxy, box, explained.relu())
        return replace(seen, box="none") if seen.area() >= FULL else seen

    def swapped(self, seen: Seen, donors: Sequence[Seen]) -> Tensor:
        """`[n + CARRIED + 1, D]`: the thing on n donors, things of some of them on its background, that alone."""
        own = seen.trace.features[self._stage]  # [1, C, h, w]
        inside, *things = (one.cover(*own.shape[-2:]) for one in (seen, *donors[:CARRIED]))  # [h, w]
        around = (own * (1 - inside)).sum(dim=(2, 3), keepdim=True) / (1 - inside).sum().clamp(min=1e-6)
        alone = own * (1 - inside) + around * inside
        others = [donor.trace.features[self._stage] for donor in donors]
        on_others = [own * inside + other * (1 - inside) for other in others]
        carried = [other * thing + alone * (1 - thing) for other, thing in zip(others, things, strict=False)]
        mixed = torch.cat([*on_others, *carried, alone])
        entering = {block: tokens.expand(len(mixed), -1, -1) for block, tokens in seen.trace.entering.items()}
        with torch_modes(self._backbone.device):
            return self._backbone.head(mixed, replace(seen.trace, entering=entering), self._stage)

    def facts(self, seen: Seen, swapped: Tensor) -> Floats:
        """`[1, 3]`, what the risk is told from; see `RISK`."""
        margins = self.margins(swapped[:DONORS], seen.first)
        lost = float((-self._backbone.logit_scale * margins).sigmoid().mean())
        return np.array([[np.log(max(seen.area(), 1e-4)), seen.margin, lost]])

    def lean(self, seen: Seen, donors: Sequence[Seen], swapped: Tensor) -> float:
        """How far the background raises the cosine of the predicted name in other pictures."""
        before = torch.cat([donor.trace.embedding for donor in donors[:CARRIED]])
        return float(((swapped[len(donors) : -1] - before) @ self.texts[seen.first]).mean())

    def margins(self, embeddings: Tensor, name: int) -> Tensor:
        """How far a name lies above the best other one, `[n]`."""
        cosines = embeddings @ self.texts.T  # [n, P]
        return cosines[:, name] - cosines.index_fill(1, torch.tensor([name]).to(cosines.device), -2).amax(dim=1)

    def surroundings(self, seen: Seen) -> Tensor:
        """`[D]` unit norm, what the tower reads outside the thing, weighted by the evidence there."""
        places = self._backbone.dense(seen.trace)[0]  # [D, h, w]
        outside = 1 - seen.cover(*places.shape[-2:])
        weight = outside * F.interpolate(seen.evidence[None, None], outside.shape, mode="area")[0, 0]
        return F.normalize((places * (weight if weight.any() else outside)).sum(dim=(1, 2)), dim=0)

    def pixels(self, seen: Seen, donors: Sequence[Seen]) -> Tensor:
        """`[n + 1, 3, H, W]` uint8: the thing on donors, and the picture with the mean of the background for it."""
        picture = seen.item.inputs[0].float()
        inside = seen.cover(*picture.shape[-2:]).round().cpu()
        mean = (picture * (1 - inside)).sum(dim=(1, 2), keepdim=True) / (1 - inside).sum().clamp(min=1)
        on_others = [picture * inside + donor.item.inputs[0] * (1 - inside) for donor in donors]
        return torch.stack([*on_others, picture * (1 - inside) + mean * inside]).to(torch.uint8)

    def embed(self, pixels: Tensor) -> Tensor:
        """`[n, D]` of inputs `[n, 3, H, W]` uint8."""
        with torch_modes(self._backbone.device):
            return self._backbone.encode_image(self._backbone.normalize(pixels.to(self._backbone.device).float() / 255))
