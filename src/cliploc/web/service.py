"""The models behind the page, shared by all visitors, and what they compute for one photograph."""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from cliploc import InputError, Localization, Localizer, Memory, Options, Reporter, UsageError
from cliploc.boxes import BoxRule
from cliploc.boxes.masks import GrabCutMasks, MaskSource
from cliploc.draw.overlay import fit_within
from cliploc.find.heads import read_config
from cliploc.find.memory import LruCache
from cliploc.find.recipes import Recipe, recipe_of
from cliploc.images.exemplars import Exemplar
from cliploc.images.reading import Picture, load
from cliploc.methods import find, fitting
from cliploc.options import FOUND, MIN_SCORE, RECIPES, SAM, UNREFINED, WAITING
from cliploc.refine import refinements, resolve_refinements
from cliploc.support.reporter import SILENT
from cliploc.towers.tower import Backbone
from cliploc.web.runs import MAX_SECONDS, Runs
from cliploc.web.settings import CUT, MOST_CELLS, RECIPE, Settings, recipe_in
from cliploc.web.uploads import MAX_AGE

PIXEL_BYTES = 64 * 2**20  # of decoded photographs
PAGE_SIDE = 1080  # longest side in pixels of a picture on the page; downloads have the photograph's own size


@dataclass(frozen=True)
class Offer:
    """A model that visitors can choose."""

    model: str  # the model's name, as `Localizer` takes it
    pretrained: str | None = None  # its weights; None for the model's default
    # method → the file with the head trained for that method on this model
    heads: Mapping[str, str] = field(default_factory=dict)
    precision: str | None = None  # of its image tower; None for the default

    @property
    def label(self) -> str:
        """The text in the menu; for a file only its name, as visitors must not learn the server's folders."""
        return " · ".join(_bare(part) for part in (self.model, self.pretrained) if part is not None)

    @property
    def arguments(self) -> dict[str, Any]:
        """`model`, `pretrained` and `precision` as `Localizer` takes them; for a file only its name."""
        weights = None if self.pretrained is None else _bare(self.pretrained)
        return {"model": self.model, "pretrained": weights, "precision": self.precision}

    def arguments_of(self, method: str) -> dict[str, Any]:
        """`method` and `head` (a file: its name), or `recipe` if not the default, as `Localizer` takes them."""
        recipe = recipe_in(method)
        if recipe is not None:
            return {} if recipe == "default" else {"recipe": recipe}
        head = self.heads.get(method)
        return {"method": method} if head is None else {"method": method, "head": _bare(head)}


def with_heads(offers: Sequence[Offer], heads: Iterable[str]) -> list[Offer]:
    """Adds heads, the files of `cliploc train`, to the models that they were trained on."""
    models = list(offers)
    for head in heads:
        trained = read_config(head)
        places, tower = [i for i, model in enumerate(models) if model.model == trained.tower], trained.tower
        if not places:
            raise UsageError(f"{head} was trained on {tower}, which is not offered: add --model {tower}")
        for place in places:
            known = models[place].heads
            if trained.method in known:
                raise UsageError(f"{head} and {known[trained.method]} are both for {trained.method}: leave one out")
            models[place] = replace(models[place], heads={**known, trained.method: head})
    return models


def _bare(name: str) -> str:
    """A file's name without its folder; `hf-hub:ORG/NAME` stays whole."""
    return Path(name).name if "/" in name and not name.startswith("hf-hub:") else name


@dataclass(frozen=True)
class Menu:
    """What can be chosen for a model."""

    recipes: Mapping[str, Recipe]  # what can run in the place of a method: "recipe:fast" → the recipe
    methods: tuple[str, ...]  # the methods that run on it
    refinements: tuple[str, ...]  # the refinements that run on it
    default: str  # what runs by default: a recipe, or the method of a trained head


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search: the maps of one photograph, from which boxes are cut at any threshold."""

    path: str  # the photograph's file
    settings: Settings  # the settings that the maps depend on, with names and method filled in
    # method → its result without boxes, which `cut` makes, with the photograph as large as the page shows it. A recipe
    # has its own name there, such as "recipe:default"
    results: dict[str, Localization]
    defaults: dict[str, Options]  # method → its values of `CUT`
    # methods whose trained head decides by itself which names are found; for them presence does not count
    closed: frozenset[str]
    offer: Offer  # the model that was used
    recipe: Recipe | None = None  # the recipe that ran; None where a method was chosen
    exemplar: str = ""  # the file of the picture that stands for a name; "" where there is none
    mask_sources: Mapping[str, MaskSource] = field(default_factory=dict)  # value of `Settings.masks_by` → what draws

    @property
    def size(self) -> int:
        """Bytes of the heatmaps and photographs, and of what second looks read."""
        return sum(
            result.maps.nbytes
            + 3 * result.image.width * result.image.height
            + (0 if result.second_look is None else result.second_look.size)
            for result in self.results.values()
        )

    def rules(self, settings: Settings) -> list[tuple[str, float]]:
        """Each method with its threshold: that of the settings for the first one, or else the method's own."""
        chosen = {method: defaults.threshold for method, defaults in self.defaults.items()}
        if settings.threshold is not None:
            chosen[next(iter(self.results))] = settings.threshold
        return list(chosen.items())  # type: ignore[arg-type]  # never "auto"

    def cut(self, settings: Settings) -> dict[str, Localization]:
        """The results with boxes for these settings; no model runs."""
        height, width = next(iter(self.results.values())).frame.original_hw
        settings.check_masks((width, height))
        source = self.mask_sources.get(settings.masks_by)
        if source is None and settings.masks_by != "heat":
            *choices, got = (name.partition(":")[0] for name in ("heat", *self.mask_sources, settings.masks_by))
            raise UsageError(f"expected masks_by to be one of {', '.join(choices)} on this server, got {got}")
        results = {}
        for method, tau in self.rules(settings):
            options = settings.filled({name: getattr(self.defaults[method], name) for name in CUT})
            of_rule = {name: getattr(options, name) for name in ("max_boxes", "split_peaks", "min_score")}
            rule = BoxRule(tau, **of_rule)
            cut = self.results[method].by(rule, 0.0 if method in self.closed else options.min_presence or 0.0)
            results[method] = replace(cut, mask_source=source)
        return results

    def ran(self, settings: Settings) -> Recipe | None:
        """The recipe with the options that were set instead of its own; None where a method was chosen."""
        if self.recipe is None:
            return None
        threshold = {} if settings.threshold is None else {"threshold": round(float(settings.threshold), 4)}
        options = {**self.recipe.options, **settings.arguments, **threshold}
        refined = {name: value for name, value in options.items() if name not in UNREFINED or value != UNREFINED[name]}
        return replace(self.recipe, options=refined)


def slider_values(defaults: Options) -> dict[str, Any]:
    """The positions of sliders for a method's values of `CUT`; "auto" holds where a name keeps its best box."""
    values = {name: getattr(defaults, name) for name in CUT}
    return values | ({"min_score": MIN_SCORE} if values["min_score"] == "auto" else {})


class Service:
    """Loads models when they are first needed, and searches photographs, a few at once."""

    def __init__(
        self,
        offers: Sequence[Offer],
        device: str | None = None,
        precision: str = "fp32",
        max_pixels: int = 25_000_000,
        max_seconds: float = MAX_SECONDS,
        recipe: str = "default",
        sam: str | None = None,
        queue: int = WAITING,
    ) -> None:
        its = None if precision == "fp32" else precision
        self.offers = {offer.label: replace(offer, precision=its) for offer in offers}
        self.max_pixels = max_pixels
        self.mask_sources: dict[str, MaskSource] = {"grabcut": GrabCutMasks()}
        if sam is not None:
            from cliploc.towers.sam import SamMasks  # an extra

            self.mask_sources[f"{SAM}FOLDER"] = SamMasks(sam, device=device or "cpu")
        self._recipe = RECIPE + recipe
        self._how: dict[str, Any] = {"device": device, "precision": precision}
        self._loaded: dict[str, Future[Localizer]] = {}  # also those that are being loaded
        self._menus: dict[str, Menu] = {}
        self.searches, self.redraws = Runs(max_seconds, queue), Runs(max_seconds, queue)
        self.memory = Memory(max_seconds=MAX_AGE)
        self.pictures = LruCache[Picture](PIXEL_BYTES, MAX_AGE)
        self._lock = threading.Lock()  # of `_loaded`; never held while a model is loaded
        self._loaders = ThreadPoolExecutor(thread_name_prefix="cliploc-load")

    def end(self) -> None:
        """Stops all searches, and refuses new ones."""
        self.searches.end()
        self.redraws.end()

    def offer(self, label: str) -> Offer:
        """The model with this text in the menu; "" for the first."""
        label = label or next(iter(self.offers))
        if label not in self.offers:
            raise UsageError(f"expected a model of the menu ({', '.join(self.offers)}), got {label[:60]!r}")
        return self.offers[label]

    def load(self, label: str) -> Future[Localizer]:
        """The model, now or once it is loaded, which happens once for all visitors and makes no other model wait."""
        offer = self.offer(label)
        with self._lock:
            loading = self._loaded.get(offer.label)
            if loading is None or (loading.done() and loading.exception()):  # after an error it is tried again
                how = {"text_cache": False, "memory": self.memory, **self._how}
                loading = self._loaders.submit(lambda: Localizer(offer.model, offer.pretrained, **how))
                self._loaded[offer.label] = loading
            return loading

    def backbone(self, label: str) -> Backbone:
        """The model; waits until it is loaded."""
        return self.load(label).result().backbone

    def menu(self, label: str) -> Menu:
        """What can be chosen for a model; raises what `backbone` raises."""
        offer = self.offer(label)
        if offer.label not in self._menus:
            backbone = self.backbone(label)
            recipes = {RECIPE + name: recipe_of(backbone, name) for name in RECIPES}
            steps = []
            for refinement in refinements:
                with suppress(UsageError):
                    resolve_refinements([refinement.name], backbone)
                    steps.append(refinement.name)
            default = next(iter(offer.heads), self._recipe)
            self._menus[offer.label] = Menu(recipes, fitting(backbone, offer.heads), tuple(steps), default)
        return self._menus[offer.label]

    def localizer(self, settings: Settings, method: str, exemplars: Sequence[Exemplar] = ()) -> Localizer:
        """A localizer for these settings; cheap, as the model is loaded already."""
        menu, heads = self.menu(settings.model), self.offer(settings.model).heads
        options: dict[str, Any] = settings.arguments | {"min_presence": 0.0}  # `Look.cut` applies the minimum
        options["exemplars"] = tuple(exemplars)
        recipe = menu.recipes.get(method)
        if recipe is not None:
            method, options = recipe.method, {**recipe.options, **options}
        else:
            options["head"] = heads.get(method)
        return Localizer(self.backbone(settings.model), method=method, text_cache=False, memory=self.memory, **options)

    def defaults(self, settings: Settings, method: str = "") -> Options:
        """The values of `CUT` of a method or recipe for options that the visitor does not set."""
        localizer = self.localizer(settings, method or self.menu(settings.model).default)
        of_rule = {name: getattr(localizer.box_rule, name) for name in ("threshold", "split_peaks", "min_score")}
        return Options(min_presence=FOUND, **of_rule)

    def look(
        self,
        path: str | None,
        settings: Settings,
        last: SearchResult | None = None,
        reporter: Reporter = SILENT,
        exemplar: str | None = None,
    ) -> SearchResult:
        """The maps of a photograph, unless `last` has them; new names run no image tower, and decode nothing."""
        if not path:
            raise UsageError("expected a picture, got none: drop one on the page or pick an example")
        menu = self.menu(settings.model)
        requested = replace(settings, method=settings.method or menu.default).with_exemplar(exemplar)
        settings = requested.computed
        if last is not None and (last.path, last.exemplar, last.settings) == (path, exemplar or "", settings):
            return last
        recipe = menu.recipes.get(settings.method or "")
        for method in settings.compare if recipe else settings.methods:
            if method not in menu.methods:
                raise UsageError(
                    f"{method[:60]!r} does not run on {self.offer(settings.model).label}: use one of "
                    f"{', '.join(menu.methods)}"
                )
        cells = len(settings.prompts) * len(settings.methods)
        if cells > MOST_CELLS:
            most = f"{MOST_CELLS} heatmaps (names × methods)"
            raise UsageError(f"expected at most {most}, got {cells}: ask for fewer names or methods at once")
        picture = self.read(path)
        requested.check_masks(picture.image.size)
        exemplars = [settings.exemplar(self.read(exemplar).image)] if exemplar else []
        offer = self.offer(settings.model)
        named = [method for method in settings.methods if method not in menu.recipes]
        of_methods = {method: {"head": offer.heads[method]} if method in offer.heads else {} for method in named}
        by_recipe = None if recipe is None else self.localizer(settings, settings.method or "", exemplars)
        by_name = self.localizer(settings, named[0], exemplars) if named else None

        found: dict[str, Localization] = {}
        how: dict[str, Any] = {"reporter": reporter, "presence": True, "boxes": False}
        if by_recipe is not None:
            found[settings.method or ""] = next(by_recipe.stream([picture], settings.prompts, **how))
        if by_name is not None:
            found |= next(by_name.compare([picture], settings.prompts, of_methods, **how))
        image, size = picture.image, fit_within(picture.image.size, PAGE_SIDE)
        if size != image.size:
            image = image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        results = {method: replace(result, image=image) for method, result in found.items()}
        defaults = {method: self.defaults(settings, method) for method in results}
        closed = frozenset(method for method, head in offer.heads.items() if read_config(head).kind == "closed")
        return SearchResult(path, settings, results, defaults, closed, offer, recipe, exemplar or "", self.mask_sources)

    def read(self, path: str) -> Picture:
        """Reads a photograph; what was read is cached for a while."""
        name = Path(path).name  # alone: visitors must not learn the server's folders
        try:
            status = os.stat(path)
            key = (path, status.st_mtime_ns, status.st_size)  # another file may have the path later
            picture = self.pictures.get(key)
            if picture is None:
                picture = replace(load(path, max_pixels=self.max_pixels), source=name)
                self.pictures.keep(key, picture, 3 * picture.image.width * picture.image.height)
        except InputError as error:
            raise InputError(str(error).replace(path, name)) from None
        except OSError:
            raise InputError(f"{name}: it is not kept any longer: upload it again") from None
        return picture


def title_of(method: str, result: Localization) -> str:
    """The title on the page of a method, or of the recipe that ran instead."""
    recipe = recipe_in(method)
    return find(method).title if recipe is None else f"{result.method}, recipe {recipe}"
