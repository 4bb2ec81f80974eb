"""`Localization`: where each name is in one picture, with overlays and a view for notebooks."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from cliploc.boxes import BoxRule, masks
from cliploc.boxes.masks import MaskSource
from cliploc.boxes.reasons import by_rule
from cliploc.errors import UsageError
from cliploc.images.geometry import Frame
from cliploc.images.reading import picture_bytes
from cliploc.images.rle import Rle, decode, encode
from cliploc.methods import as_tensor
from cliploc.options import Colormap, number, short
from cliploc.support.imports import check_installed
from cliploc.values import BoolArray, Boxes, FloatArray, Masks

if TYPE_CHECKING:
    from PIL import Image

    from cliploc.find.second_look import Judgement, SecondLook

PresenceRule = Literal["calibrated", "bank"]
Verdict = Literal["found", "unsure", "not found"]
NOTEBOOK_SIDE = 640  # pixels of the longer side of a picture in a notebook


@dataclass(frozen=True, eq=False, repr=False)
class Localization:
    """The result of one picture: heatmaps, boxes and masks of each name.

    Attributes:
        source: the file, or "image 0" for a picture from memory.
        image: the upright RGB picture.
        names: what was asked for, in order.
        scores: `[P]` float32, image–text cosine.
        presence: `[P]` float32, the chance that each name is in the picture (docs/presence.md); None if there is none,
            NaN of a name that the model does not know.
        found: `[P]` bool.
        reasons: for each name, why it was not found, or is unsure; None when it was found.
        maps: `[P, H, W]` float32 in 0–1 over the model's input; over the picture after a refinement such as `guided`.
        frame: how the picture lies in what the maps are over.
        boxes: the boxes of the names found, best first within each name. Where `calibrated`, a score is the estimated
            chance that the box has IoU ≥ 0.5 with a thing of that name; else it only ranks boxes.
        notes: remarks on the picture ("animated: the first is used") and on how sure its maps are.
        embedding: `[D]` float32, unit norm: the whole picture in the space it shares with the texts; None if it was not
            computed.
        method: the title of the method that made the maps; "" if it is not known.
        model: the model's name; "" if it is not known.
        threshold: τ of the boxes, or "auto" (`BoxRule.threshold`); None if it is not known.
        rule: the other parameters of the boxes, which masks need; None for the defaults of `BoxRule`.
        presence_rule: "calibrated" if the chance is fitted to the model, or "bank": uncalibrated, by comparison with a
            bank of other names; None if there is none.
        judged: what a second look says, also of boxes that are left out; None without one.
        calibrated: `[P]` bool, whether the scores of a name's boxes are chances that were fitted to this model, method
            and settings; None: of no name.
        second_look: what judges other boxes of the same picture; None without a second look, or without maps.
        sides: `[P, LENGTH]` how the sides of boxes are moved, as corrections have taught it (see
            `cliploc.boxes.sides`); None where no name was learnt.
        mask_source: what draws the masks, such as `cliploc.boxes.masks.GrabCutMasks`; None: the heat.
        has_maps: whether `maps` are there; after `keep_maps=False` they are zeros, and masks and `by` are refused.
    """

    source: str
    image: Image.Image
    names: tuple[str, ...]
    scores: FloatArray
    presence: FloatArray | None
    found: BoolArray
    reasons: tuple[str | None, ...]
    maps: FloatArray
    frame: Frame
    boxes: Boxes
    notes: tuple[str, ...] = ()
    embedding: FloatArray | None = None
    method: str = ""
    model: str = ""
    threshold: float | Literal["auto"] | None = None
    rule: BoxRule | None = None
    presence_rule: PresenceRule | None = None
    judged: Judgement | None = None
    calibrated: BoolArray | None = None
    second_look: SecondLook | None = None
    sides: FloatArray | None = None
    mask_source: MaskSource | None = None
    has_maps: bool = True

    @property
    def unsure(self) -> Boxes:
        """The boxes of names that may be in the picture; none without a second look."""
        return Boxes.joined([], self.names) if self.judged is None else self.judged.unsure

    @property
    def visible_boxes(self) -> Boxes:
        """The boxes of the names found and of the unsure ones, which are drawn dashed."""
        return Boxes.joined([self.boxes, self.unsure], self.names)

    def verdict(self, index: int) -> Verdict:
        """The outcome for a name: "unsure" if all its boxes are too doubtful."""
        if self.found[index]:
            return "found"
        return "unsure" if self.judged is not None and (self.judged.unsure.label == index).any() else "not found"

    def is_calibrated(self, index: int) -> bool:
        """Whether the scores of a name's boxes are chances."""
        return self.calibrated is not None and bool(self.calibrated[index])

    def score_text(self, index: int, score: float) -> str:
        """The score of a name's box in words: "score 0.93", a chance, or "uncalibrated 0.93"."""
        return f"{'score' if self.is_calibrated(index) else 'uncalibrated'} {score:.2f}"

    def presence_of(self, index: int) -> float | None:
        """A name's presence; None where there is none, as of a name that the model does not know."""
        return None if self.presence is None or np.isnan(self.presence[index]) else float(self.presence[index])

    def presence_text(self, index: int) -> str:
        """A name's presence in words: "0.93", or "0.93 uncalibrated"; "–" where there is none."""
        presence = self.presence_of(index)
        return "–" if presence is None else f"{presence:.2f}" + " uncalibrated" * (self.presence_rule == "bank")

    def peak(self, index: int) -> tuple[float, float, float] | None:
        """A map's hottest place: heat (0–1), x, y in original pixels, the first of equals; None for a flat map."""
        x0, y0, x1, y1 = self.frame.visible_xyxy
        heat = self.maps[index, y0:y1, x0:x1]  # [h, w]
        if not heat.size or heat.min() == heat.max():
            return None
        y, x = np.unravel_index(int(heat.argmax()), heat.shape)
        centre = (x0 + x + 0.5, y0 + y + 0.5)
        left, top, *_ = self.frame.to_original(np.array([[*centre, *centre]]))[0].tolist()
        return float(heat[y, x]), left, top

    @property
    def heatmaps(self) -> FloatArray:
        """`[P, H, W]` float32 in 0–1, original size; resampled from `maps` at every call, to save memory."""
        return self.frame.map_to_original(as_tensor(self.maps)).numpy()

    def maps_over_picture(self, hw: tuple[int, int]) -> FloatArray:
        """`[P, h, w]` float32 in 0–1 over the whole picture, at any height and width; zero where it was cropped.

        At (224, 224) these are the score maps of the WSOL evaluation (`cliploc evaluate`).
        """
        return self.frame.map_to_picture(as_tensor(self.maps), hw).clamp(0, 1).numpy()

    @property
    def masks(self) -> Masks:
        """Masks of boxes and names, original size; made anew at every call (docs/masks.md).

        Example:
            >>> from cliploc import Localizer
            >>> found = Localizer()("cat.jpg", ["cat"])
            >>> found.masks.label_map().shape == found.image.size[::-1]
            True
        """
        of_names = np.zeros((len(self.names), *self.frame.original_hw), bool)
        for p in np.flatnonzero(self.found).tolist():
            of_names[p] = self.name_mask(p)
        return Masks(self._of_boxes(), of_names, self.names, self.label_map())

    def box_masks(self) -> Iterator[tuple[int, BoolArray]]:
        """The number of each box and its mask `[H, W]`, one at a time, because all together may need much memory."""
        if self.mask_source is not None:
            return ((index, decode(mask)) for index, mask in self._drawn.items())
        self.check_maps()
        return masks.box_masks(self.frame, self.maps, self.boxes, self.box_rule)

    def name_mask(self, index: int) -> BoolArray:
        """Where a name's heat exceeds the threshold, `[H, W]`; nowhere for a name that was not found.

        With a `mask_source` the masks of the name's boxes together.
        """
        if not self.found[index] or self.mask_source is not None:
            mask = np.zeros(self.frame.original_hw, bool)
            for box in self._drawn:
                if self.boxes.label[box] == index:
                    mask |= decode(self._drawn[box])
            return mask
        self.check_maps()
        return masks.name_mask(self.frame, self.maps[index], self.box_rule)

    def label_map(self) -> npt.NDArray[np.uint16]:
        """`[H, W]`: 0 for the background, 1 for the first name and so on: the hottest name whose mask has the pixel."""
        self.check_maps()
        mask_of = None if self.mask_source is None else self.name_mask
        return masks.label_map(self.frame, self.maps, self.found, self.box_rule, mask_of)

    @cached_property
    def _drawn(self) -> dict[int, Rle]:
        """The masks of boxes by the mask source, packed, as they take long to draw and are many."""
        if self.mask_source is None:
            return {}
        return {index: encode(mask) for index, mask in self.mask_source.box_masks(self)}

    def _of_boxes(self) -> BoolArray:
        of_boxes = np.zeros((len(self.boxes), *self.frame.original_hw), bool)  # [n, H, W]
        for index, mask in self.box_masks():
            of_boxes[index] = mask
        return of_boxes

    def check_maps(self) -> None:
        """Refuses what is made of the maps, where they were not kept."""
        if not self.has_maps:
            raise UsageError(f"expected the maps of {self.source}, got a result without: leave keep_maps=False out")

    @property
    def box_rule(self) -> BoxRule:
        """The rule of the boxes, with its threshold."""
        rule = BoxRule() if self.rule is None else self.rule
        return rule if self.threshold is None else replace(rule, threshold=self.threshold)

    def to_supervision(self, masks: bool = True) -> Any:
        """Boxes as `supervision.Detections`, with their masks by default; names in `data["class_name"]`."""
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.xyxy.copy(),
            mask=self._of_boxes() if masks else None,
            confidence=self.boxes.score.copy(),
            class_id=self.boxes.label.copy(),
            data={"class_name": np.array([self.names[i] for i in self.boxes.label], dtype=object)},
        )

    def to_dataframe(self) -> Any:
        """Boxes as a pandas table: a row each with `source`, `label`, `score`, `presence`, `x0`, `y0`, `x1`, `y1`.

        Example:
            >>> from cliploc import Localizer
            >>> Localizer()("demo:cat.jpg", ["cat", "pizza"]).to_dataframe().label.tolist()
            ['cat']
        """
        check_installed("bench", "to_dataframe", "pandas")
        import pandas

        corners = pandas.DataFrame(self.boxes.xyxy, columns=["x0", "y0", "x1", "y1"])
        labels = self.boxes.label.tolist()
        presence = [self.presence_of(label) for label in labels]
        about = {"source": self.source, "label": [self.names[label] for label in labels], "score": self.boxes.score}
        return corners.assign(**about, presence=presence)[[*about, "presence", *corners.columns]]

    def overlay(
        self,
        names: Sequence[str] | None = None,
        opacity: float | None = None,
        heatmap: bool | None = None,
        boxes: bool = True,
        caption: bool = True,
        masks: bool = False,
        colormap: Colormap = "viridis",
    ) -> Image.Image:
        """The picture with heatmap, masks and boxes.

        Args:
            names: of these names only; None for all of them.
            opacity: of the hottest places and of masks, 0–1; None for the usual one.
            heatmap: whether heat is drawn; None: unless masks are.
            boxes: whether boxes with their labels are drawn.
            caption: whether method, model and threshold are written in a corner.
            masks: whether the mask of each box is drawn, with its outline, in the colour of its name.
            colormap: the colours of a single name's heat.

        Raises:
            UsageError: a name that was not asked for, or an opacity outside 0–1.
        """
        from cliploc.draw.overlay import OPACITY, draw_overlay  # here: most callers never draw

        strength = OPACITY if opacity is None else opacity
        return draw_overlay(self, names, strength, heatmap, boxes, caption, masks, colormap)

    def boxes_by(self, rule: BoxRule) -> Boxes:
        """The boxes that another rule extracts from the same maps, of names from the same minimum of presence on."""
        return self.by(rule, 0.0 if self.second_look is None else self.second_look.min_presence).boxes

    def by(self, rule: BoxRule, min_presence: float) -> Localization:
        """The same maps with boxes by another rule, and a minimum presence from the run's on; no model runs.

        Names that are not in the picture by the run's minimum stay so by a lower one.
        """
        if not isinstance(rule, BoxRule):
            raise UsageError(f"expected a BoxRule, got {short(rule)}: write cliploc.boxes.BoxRule(0.3)")
        number("min_presence", 0, 1)(np.asarray(min_presence).item())
        self.check_maps()
        return by_rule(self, rule, min_presence)

    def judged_by(self, judged: Judgement) -> Localization:
        """With what a second look says."""
        found, presence = np.array([reason is None for reason in judged.reasons]), judged.presence
        if self.presence is not None:
            presence = np.where(np.isnan(self.presence), self.presence, presence)  # names that it does not know
        return replace(self, boxes=judged.boxes, found=found, reasons=judged.reasons, presence=presence, judged=judged)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ if self.has_maps else {**self.__dict__, "maps": self.maps.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Maps that were not kept are one zero in memory, of which a copy would make gigabytes.
        self.__dict__.update(state if state["has_maps"] else {**state, "maps": no_maps(state["maps"])})

    def __repr__(self) -> str:
        width, height = self.image.size
        counts = [
            f"{name} ({(self.boxes.label == p).sum()})" if self.found[p] else f"{name}: {self.verdict(p)}"
            for p, name in enumerate(self.names)
        ]
        return f"<Localization of {self.source}, {width}×{height}: {', '.join(counts)}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the overlay, and a line for each name."""
        drawn = self.overlay().convert("RGB")
        drawn.thumbnail((NOTEBOOK_SIDE, NOTEBOOK_SIDE))
        counts = np.bincount(self.boxes.label, minlength=len(self.names))
        lines = [
            f"<li>{html.escape(name)}: {html.escape(reason or ('1 box' if n == 1 else f'{n} boxes'))}</li>"
            for name, reason, n in zip(self.names, self.reasons, counts, strict=True)
        ]
        picture = base64.b64encode(picture_bytes(drawn, "JPEG", quality=85)).decode("ascii")
        alt = html.escape(repr(self), quote=True)
        return f'<img alt="{alt}" src="data:image/jpeg;base64,{picture}"><ul>{"".join(lines)}</ul>'


def no_maps(shape: tuple[int, ...]) -> FloatArray:
    """Zeros for maps that nobody keeps, which take no memory."""
    return np.broadcast_to(np.zeros((), np.float32), shape)
