"""The models behind the page, shared by all visitors, and one look at one photograph."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.overrides import TorchFunctionMode

from cliploc.boxes import BoxRule
from cliploc.errors import InputError, UsageError
from cliploc.heads import read_config
from cliploc.images import Picture, load
from cliploc.localization import Localization
from cliploc.localizer import Localizer, default_method
from cliploc.memory import Memory
from cliploc.pipeline.decide import absence
from cliploc.pipeline.requests import Reporter
from cliploc.refine import chosen, refinements
from cliploc.report.overlay import fit_within
from cliploc.saliency import fitting
from cliploc.schema import Backbone, Boxes
from cliploc.web.runs import MAX_SECONDS, Runs
from cliploc.web.settings import Settings

KEPT_SECONDS = 1800  # a visitor's last look and uploads, and what models saw, when nobody asks again
# Torch's names for what takes time. Only there a look may be ended: others put back what a layer has changed, such as
# whether gradients are kept.
LAYERS = {
    "conv2d", "linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "einsum", "layer_norm", "softmax", "interpolate",
    "scaled_dot_product_attention", "multi_head_attention_forward", "grad",
}  # fmt: skip
KEPT_MODELS = 2  # in memory at once; the one that was not used for longest goes


@dataclass(frozen=True)
class Offer:
    """A model of the menu.

    Attributes:
        model: as `Localizer` takes it.
        pretrained: which weights; None for its own.
        heads: method → the file of layers trained for it on this model.
        precision: of its tower; None for the default.
    """

    model: str
    pretrained: str | None = None
    heads: Mapping[str, str] = field(default_factory=dict)
    precision: str | None = None

    @property
    def label(self) -> str:
        """As the menu shows it; of a file only the name, as where it lies is nobody's business."""
        return " · ".join(_bare(part) for part in (self.model, self.pretrained) if part is not None)

    @property
    def arguments(self) -> dict[str, Any]:
        """`model`, `pretrained` (a file by its name only) and `precision`."""
        weights = None if self.pretrained is None else _bare(self.pretrained)
        return {"model": self.model, "pretrained": weights, "precision": self.precision}

    def arguments_of(self, method: str) -> dict[str, Any]:
        """`method`, and `head` where it has one, by its name only."""
        head = self.heads.get(method)
        return {"method": method} if head is None else {"method": method, "head": _bare(head)}


def with_heads(offers: Sequence[Offer], heads: Iterable[str]) -> list[Offer]:
    """The models with the files of `cliploc train`, each beside the model that it was trained on.

    Raises:
        UsageError: a head of a model that is not offered, or two for one method of a model.
        ModelError: a file that is no head.
    """
    found = list(offers)
    for head in heads:
        trained = read_config(head)
        places = [i for i, one in enumerate(found) if one.model == trained.tower]
        if not places:
            raise UsageError(
                f"{head} was trained on {trained.tower}, which is not offered: add --model {trained.tower}"
            )
        for place in places:
            known = found[place].heads
            if trained.method in known:
                raise UsageError(f"{head} and {known[trained.method]} are both for {trained.method}: leave one out")
            found[place] = replace(found[place], heads={**known, trained.method: head})
    return found


def _bare(name: str) -> str:
    """A file's name without its folder; `hf-hub:ORG/NAME` stays whole."""
    return Path(name).name if "/" in name and not name.startswith("hf-hub:") else name


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
        path: the photograph's file.
        settings: that it was computed for, names and method filled in.
        results: method → its result, asked with no threshold and of every name, so that any may still be found.
        own: method → its own threshold.
        closed: methods whose trained head says by itself which names there are, whatever their presence.
        offer: the model.
    """

    path: str
    settings: Settings
    results: dict[str, Localization]
    own: dict[str, float]
    closed: frozenset[str]
    offer: Offer

    def rules(self, settings: Settings) -> list[tuple[str, float]]:
        """Each method with the threshold that is asked for, or its own."""
        wanted = (settings.threshold, settings.compare_threshold)
        return [
            (method, self.own[method] if threshold is None else threshold)
            for method, threshold in zip(self.results, wanted, strict=False)
        ]

    def cut(self, settings: Settings) -> dict[str, Localization]:
        """The results with boxes by the settings; no model runs."""
        every = replace(settings, min_presence=0.0)
        return {
            method: recut(self.results[method], tau, every if method in self.closed else settings)
            for method, tau in self.rules(settings)
        }

    def slim(self, side: int) -> Look:
        """As it is kept for a visitor: with a copy of the photograph that is no larger than it is shown."""
        return replace(self, results={method: slim(one, side) for method, one in self.results.items()})


class Engine:
    """Loads models when they are asked for, one at a time, and looks at photographs.

    Args:
        offers: the models that visitors may choose, the first being the default.
        device: a torch device; None for the best.
        precision: of the towers.
        max_pixels: the largest photograph.
        max_seconds: that one request may take.
    """

    def __init__(
        self,
        offers: Sequence[Offer],
        device: str | None = None,
        precision: str = "fp32",
        max_pixels: int = 25_000_000,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        if not offers:
            raise UsageError("expected at least one model, got none: leave --model out for mini")
        chosen = None if precision == "fp32" else precision
        self.offers = {offer.label: replace(offer, precision=chosen) for offer in offers}
        self.max_pixels = max_pixels
        self._how: dict[str, Any] = {"device": device, "precision": precision}
        self._loaded: OrderedDict[str, Backbone] = OrderedDict()
        self.runs = Runs(max_seconds)
        self.memory = Memory(max_seconds=KEPT_SECONDS)
        self._lock = threading.Lock()
        # One look at a time, as a model fills the machine, and all in one thread: else what is kept of them would hold
        # open the heap of whichever thread came by, and memory would grow far beyond what is kept.
        self._models = ThreadPoolExecutor(1, thread_name_prefix="cliploc-models")

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
        heads = self.offer(label).heads
        steps = tuple(one.name for one in refinements if _usable(one.name, backbone))
        return Menu(fitting(backbone, heads), steps, next(iter(heads), default_method(backbone)))

    def localizer(self, settings: Settings, method: str, threshold: float | None = None) -> Localizer:
        """One for these settings; it costs next to nothing, as the model is there already."""
        backbone, head = self.backbone(settings.model), self.offer(settings.model).heads.get(method)
        options = settings.arguments | {"min_presence": 0.0}  # `recut` asks for presence
        return Localizer(
            backbone, method=method, head=head, threshold=threshold, text_cache=False, memory=self.memory, **options
        )

    def own_threshold(self, settings: Settings, method: str = "") -> float:
        """The method's own (of "", the model's own method's), as it is after the refinements."""
        return float(self.localizer(settings, method or self.menu(settings.model).own_method).box_rule.threshold)

    def look(
        self,
        path: str | None,
        settings: Settings,
        last: Look | None = None,
        on_masked: Callable[[int, int], None] | None = None,
    ) -> Look:
        """Computes the maps of a photograph, unless `last` holds them; for new names the tower does not run again.

        Args:
            path: the uploaded file.
            settings: what to look for, and how.
            last: what this visitor saw last.
            on_masked: called with the number of masked pictures just done and of those left, often with none done; may
                raise to end it.

        Raises:
            InputError: the photograph cannot be used.
            UsageError: a setting that cannot be used.
            ModelError: a model that cannot be loaded, or that gave what is no number.
        """
        if not path:
            raise UsageError("expected a photograph, got none: drop one on the page or pick an example")
        menu = self.menu(settings.model)
        settings = replace(settings, method=settings.method or menu.own_method).computed
        if last is not None and (last.path, last.settings) == (path, settings):
            return last
        for method in settings.methods:
            if method not in menu.methods:
                raise UsageError(
                    f"{method[:60]!r} does not run on {self.offer(settings.model).label}: use one of "
                    f"{', '.join(menu.methods)}"
                )
        picture = self.read(path)
        offer = self.offer(settings.model)
        asked = {method: {"head": offer.heads[method]} if method in offer.heads else {} for method in settings.methods}

        def compute() -> list[dict[str, Localization]]:
            names = settings.asked
            if on_masked is None:
                return list(localizer.compare([picture.image], names, asked))
            with _Interruptible(on_masked) as counted:
                return list(localizer.compare([picture.image], names, asked, reporter=Reporter(masked=counted.count)))

        # At τ = 0 no name is lost for having small regions only: a lower threshold may still find it.
        localizer = self.localizer(settings, settings.method, threshold=0.0)
        (found,) = self._models.submit(compute).result()
        results = {
            method: replace(one, source=picture.source, notes=picture.notes + one.notes)
            for method, one in found.items()
        }
        own = {method: self.own_threshold(settings, method) for method in results}
        closed = frozenset(method for method, head in offer.heads.items() if read_config(head).kind == "closed")
        return Look(path, settings, results, own, closed, offer)

    def read(self, path: str) -> Picture:
        """The photograph under its bare name: the folder is the server's business.

        Raises:
            InputError: too large, damaged or no picture.
        """
        name = Path(path).name
        try:
            return replace(load(path, max_pixels=self.max_pixels), source=name)
        except InputError as error:
            raise InputError(str(error).replace(path, name)) from None


class _Interruptible(TorchFunctionMode):
    """Asks before every layer whether to go on, so that any method can be ended, whatever it counts.

    Args:
        on_masked: as for `Engine.look`.
    """

    def __init__(self, on_masked: Callable[[int, int], None]) -> None:
        super().__init__()
        self._on_masked = on_masked
        self._left = 0

    def count(self, done: int, left: int) -> None:
        self._left = left
        self._on_masked(done, left)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in LAYERS:
            self._on_masked(0, self._left)
        return func(*args, **(kwargs or {}))


def _usable(refinement: str, backbone: Backbone) -> bool:
    try:
        chosen([refinement], backbone)
    except UsageError:
        return False
    return True


def slim(result: Localization, side: int) -> Localization:
    """The result with a copy of its picture of at most this side; its boxes and frame stay the original's."""
    size = fit_within(result.image.size, side)
    if size == result.image.size:
        return result
    image = result.image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return replace(result, image=image)


def recut(result: Localization, threshold: float, settings: Settings) -> Localization:
    """The result with other boxes of the same maps, and `found` to suit them; no model runs."""
    rule = BoxRule(threshold=threshold, max_boxes=settings.max_boxes or None)
    reasons = list(result.reasons)
    if result.presence is not None:
        for index, presence in enumerate(result.presence):
            if reasons[index] is None and presence < settings.min_presence:
                reasons[index] = absence(float(presence), settings.min_presence)
    located = np.array([reason is None for reason in reasons])
    boxes = replace(result, found=located).boxes_by(rule)
    keep = boxes.score >= settings.min_score
    kept = Boxes(boxes.xyxy[keep], boxes.score[keep], boxes.label[keep], boxes.names)
    for index in np.flatnonzero(located).tolist():
        if index not in boxes.label:
            reasons[index] = f"no region of its map reaches {rule.min_area:g} of the picture"
        elif index not in kept.label:
            reasons[index] = f"no box scores {settings.min_score:g} or more"
    found = np.array([reason is None for reason in reasons])
    return replace(result, boxes=kept, found=found, reasons=tuple(reasons))
