"""The models behind the page, shared by all visitors, and one look at one photograph."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from cliploc.errors import InputError, UsageError
from cliploc.images import Picture, load
from cliploc.localizer import DrawableLocalization, Localizer, default_method
from cliploc.refine import chosen, refinements
from cliploc.saliency import methods
from cliploc.schema import Backbone, Boxes, Pooling
from cliploc.web.runs import Runs
from cliploc.web.settings import Settings

KEPT_MODELS = 2  # in memory at once; the one that was not used for longest goes


@dataclass(frozen=True)
class Offer:
    """A model of the menu.

    Attributes:
        model: as `Localizer` takes it.
        pretrained: which weights; None for its own.
    """

    model: str
    pretrained: str | None = None

    @property
    def label(self) -> str:
        """As the menu shows it; of a file only the name, as where it lies is nobody's business."""
        parts = [self.model, *([] if self.pretrained is None else [self.pretrained])]
        return " · ".join(Path(part).name if "/" in part and ":" not in part else part for part in parts)

    @property
    def arguments(self) -> dict[str, Any]:
        """`model` and `pretrained`, a file by its name only."""
        shown = self.pretrained
        return {"model": self.model, "pretrained": Path(shown).name if shown and "/" in shown else shown}


@dataclass(frozen=True)
class Menu:
    """What there is to choose on a model."""

    methods: tuple[str, ...]
    refinements: tuple[str, ...]
    own_method: str


@dataclass(frozen=True)
class Look:
    """One photograph through one model: what stays while thresholds move.

    Attributes:
        key: photograph and settings that it was computed for.
        results: method → its result, every region that is hot at all still in it.
        own: method → its own threshold.
        offer: the model.
    """

    key: tuple[str, Settings]
    results: dict[str, DrawableLocalization]
    own: dict[str, float]
    offer: Offer

    def rules(self, settings: Settings) -> list[tuple[str, float]]:
        """Each method with the threshold that is asked for, or its own."""
        wanted = (settings.threshold, settings.compare_threshold)
        return [
            (method, self.own[method] if threshold is None else threshold)
            for method, threshold in zip(self.results, wanted, strict=False)
        ]

    def cut(self, settings: Settings) -> dict[str, DrawableLocalization]:
        """The results with boxes by the settings; no model runs."""
        return {method: recut(self.results[method], tau, settings) for method, tau in self.rules(settings)}


class Engine:
    """Loads models when they are asked for, one at a time, and looks at photographs.

    Args:
        offers: the models that visitors may choose, the first being the default.
        device: a torch device; None for the best.
        precision: of the towers.
        max_pixels: the largest photograph.
    """

    def __init__(
        self, offers: Sequence[Offer], device: str | None = None, precision: str = "fp32", max_pixels: int = 25_000_000
    ) -> None:
        if not offers:
            raise UsageError("expected at least one model, got none: leave --model out for mini")
        self.offers = {offer.label: offer for offer in offers}
        self.max_pixels = max_pixels
        self._how: dict[str, Any] = {"device": device, "precision": precision}
        self._loaded: OrderedDict[str, Backbone] = OrderedDict()
        self.runs = Runs()
        self._lock = threading.Lock()
        self._working = threading.Lock()

    def offer(self, label: str) -> Offer:
        """The model of the menu.

        Raises:
            UsageError: one that the menu does not hold, whatever else the machine has.
        """
        label = label or next(iter(self.offers))
        if label not in self.offers:
            raise UsageError(f"expected a model of the menu ({', '.join(self.offers)}), got {label[:60]!r}")
        return self.offers[label]

    def backbone(self, label: str) -> Backbone:
        """The model, loaded once for all visitors.

        Raises:
            UsageError: not in the menu.
            ModelError: its weights cannot be loaded.
        """
        offer = self.offer(label)
        with self._lock:
            if offer.label not in self._loaded:
                while len(self._loaded) >= KEPT_MODELS:
                    self._loaded.popitem(last=False)
                loaded = Localizer(offer.model, offer.pretrained, text_cache=False, **self._how)
                self._loaded[offer.label] = loaded.backbone
            self._loaded.move_to_end(offer.label)
            return self._loaded[offer.label]

    def menu(self, label: str) -> Menu:
        """What runs on a model; errors as for `backbone`."""
        backbone = self.backbone(label)
        pooling: Pooling = getattr(backbone, "pooling", "global average")  # of a CNN nobody asks
        fitting = tuple(one.name for one in methods if one.runs_on(backbone.kind, pooling))
        return Menu(fitting, tuple(one.name for one in refinements if _usable(one.name, backbone)), self._own(backbone))

    def _own(self, backbone: Backbone) -> str:
        return default_method(backbone)

    def localizer(self, settings: Settings, method: str, threshold: float | None = None) -> Localizer:
        """One for these settings; it costs next to nothing, as the model is there already."""
        backbone = self.backbone(settings.model)
        return Localizer(backbone, method=method, threshold=threshold, text_cache=False, **settings.arguments)

    def own_threshold(self, settings: Settings, method: str) -> float:
        """The method's own, as it is after the refinements."""
        return float(self.localizer(settings, method or self._own(self.backbone(settings.model))).box_rule.threshold)

    def look(
        self,
        path: str | None,
        settings: Settings,
        last: Look | None = None,
        on_masked: Callable[[int], None] | None = None,
    ) -> Look:
        """Computes the maps of a photograph, unless `last` holds them.

        Args:
            path: the uploaded file.
            settings: what to look for, and how.
            last: what this visitor saw last.
            on_masked: called with the number of masked pictures just done; may raise to end it.

        Raises:
            InputError: the photograph cannot be used.
            UsageError: a setting that cannot be used.
            ModelError: a model that cannot be loaded, or that gave what is no number.
        """
        if not path:
            raise UsageError("expected a photograph, got none: drop one on the page or pick an example")
        settings = replace(settings, method=settings.method or self._own(self.backbone(settings.model)))
        key = (path, settings.computed)
        if last is not None and last.key == key:
            return last
        menu = self.menu(settings.model)
        for method in settings.methods:
            if method not in menu.methods:
                raise UsageError(
                    f"{method[:60]!r} does not run on {self.offer(settings.model).label}: use one of "
                    f"{', '.join(menu.methods)}"
                )
        picture = self.read(path)
        # At τ = 0 no name is lost for having small regions only: a lower threshold may still find it.
        localizer = self.localizer(settings, settings.method, threshold=0.0)
        with self._working:  # one at a time: a model fills the machine
            (found,) = localizer.compare([picture.image], settings.asked, settings.methods, on_masked=on_masked)
        results = {
            method: replace(one, source=picture.source, notes=picture.notes + one.notes)
            for method, one in found.items()
        }
        own = {method: self.own_threshold(settings, method) for method in results}
        return Look(key, results, own, self.offer(settings.model))

    def read(self, path: str) -> Picture:
        """The photograph under its bare name: the folder is the server's business.

        Raises:
            InputError: too large, damaged or no picture.
        """
        name = Path(path).name
        try:
            with Image.open(path) as opened:  # the header only
                width, height = opened.size
        except Exception:  # `load` says what is wrong with it
            width = height = 0
        if width * height > self.max_pixels:
            raise InputError(
                f"{name}: {width}×{height} pixels, expected at most {self.max_pixels / 1e6:g} million: make it smaller"
            )
        try:
            return replace(load(path), source=name)
        except InputError as error:
            raise InputError(str(error).replace(path, name)) from None


def _usable(refinement: str, backbone: Backbone) -> bool:
    try:
        chosen([refinement], backbone)
    except UsageError:
        return False
    return True


def recut(result: DrawableLocalization, threshold: float, settings: Settings) -> DrawableLocalization:
    """The result with other boxes of the same maps, and `found` to suit them; no model runs."""
    from cliploc.boxes import BoxRule

    rule = BoxRule(threshold=threshold, max_boxes=settings.max_boxes or None)
    boxes = result.boxes_by(rule)
    keep = boxes.score >= settings.min_score
    kept = Boxes(boxes.xyxy[keep], boxes.score[keep], boxes.label[keep], boxes.names)
    reasons = []
    for index, reason in enumerate(result.reasons):
        if reason is None and index not in boxes.label:
            reason = f"no region of its map reaches {rule.min_area:g} of the picture"
        elif reason is None and index not in kept.label:
            reason = f"no box scores {settings.min_score:g} or more"
        reasons.append(reason)
    found = result.found & [reason is None for reason in reasons]
    return replace(result, boxes=kept, found=found, reasons=tuple(reasons))
