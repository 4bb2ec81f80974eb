"""What a faithfulness metric is, and `Faithfulness`, which measures the maps of methods by one model's scores."""

import copy
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cliploc.errors import InputError, ModelError, UsageError
from cliploc.evaluate.tasks.faithfulness.metrics import faithfulness_metric as faithfulness_metric
from cliploc.find import prompts
from cliploc.find.prepare import Request
from cliploc.find.running import torch_modes
from cliploc.images.reading import ImageLike
from cliploc.localizer import Localizer
from cliploc.options import FaithfulnessOptions
from cliploc.support.process import in_halves
from cliploc.support.reporter import SILENT, Reporter
from cliploc.towers.tower import Backbone
from cliploc.values import FloatArray

STEPS = 224  # RISE's: 224 pixels a step at 224×224
BLUR_SIDE, BLUR_SIGMA = 11, 5.0  # RISE's
PUBLISHED = FaithfulnessOptions()  # the protocols as they were published
R = TypeVar("R")
Normalize = Callable[[Tensor], Tensor]  # RGB in 0–1 → normalised
Make = Callable[[int, int], Tensor]  # first and last + 1 of some pictures → these pictures `[n, 3, H, W]` normalised


@dataclass(frozen=True)
class Number:
    """One number that a metric reports: the mean over pictures."""

    title: str  # heading of its column
    about: str  # one line that explains it
    best: Literal["low", "high", ""] = ""  # whether a low or a high number is better; "" where neither is
    visible: bool = True  # whether tables on the terminal have it


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of a curve."""

    label: str
    places: tuple[float, ...] = ()  # of the scores on it; (): at equal distances from 0 to 1


@dataclass(frozen=True)
class Measured:
    """A metric's result for one map."""

    values: Mapping[str, float | None]  # key of a number → its value; None where it cannot be computed
    # name → scores, equally many for every picture of a run; None for a score that cannot be computed
    curves: Mapping[str, Sequence[float | None]] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------- scores of changed pictures
class Scores(NamedTuple):
    """The model's scores of n pictures."""

    probability: Tensor  # [n] softmax over all names, of the name in question
    cosine: Tensor  # [n] with the name in question
    first: Tensor  # [n] index of the name that fits best


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of these pictures, one after the other."""
    return Scores(*(torch.cat(series) for series in zip(*parts, strict=True)))


class Scorer:
    """Scores pictures by a name among several."""

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],  # [n, 3, H, W] normalised → [n, D] unit norm
        names: Tensor,  # [K, D] unit norm
        logit_scale: float,
        batch_size: int = 32,
        reporter: Reporter = SILENT,
    ) -> None:
        self._encode, self._names, self._logit_scale = encode, names.float(), logit_scale
        self._batch_size, self._reporter = batch_size, reporter

    def __call__(self, count: int, make: Make, target: int) -> Scores:
        """Scores `count` pictures, made a batch at a time."""
        parts = []
        with torch.no_grad():
            for start in range(0, count, self._batch_size):
                end = min(start + self._batch_size, count)
                cosines = self._cosines(make(start, end)).cpu()
                probabilities = (self._logit_scale * cosines).softmax(dim=-1)
                parts.append(Scores(probabilities[:, target], cosines[:, target], cosines.argmax(dim=-1)))
                self._reporter.masked(end - start, count - end)
        return joined(parts)

    def logits(self, images: Tensor) -> Tensor:
        """The logits `[n, K]` of pictures `[n, 3, H, W]` normalised, for metrics of other packages."""
        return self._logit_scale * self._cosines(images)

    def _cosines(self, pictures: Tensor) -> Tensor:
        """Pictures `[n, 3, H, W]` → `[n, K]`; by halves where memory is short."""
        embeddings = torch.cat([made for _, made in in_halves(pictures, self._encode, self._reporter.halved)])
        cosines = embeddings.float() @ self._names.T.to(embeddings.device)
        if not cosines.isfinite().all():
            raise ModelError("the tower gave a perturbed picture an embedding that is not a number: use fp32")
        return cosines


# --------------------------------------------------------------------------------------- what replaces removed pixels
def blur_kernel(side: int = BLUR_SIDE, sigma: float = BLUR_SIGMA) -> Tensor:
    """RISE's kernel `[side, side]`: a Gaussian reflected at the edges, so flatter than one cut off."""
    reach = round(4 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = (-(offsets**2) / (2 * sigma**2)).exp()
    weights /= weights.sum()
    places = (offsets.long() + side // 2) % (2 * side)  # the period of a row that is reflected at both ends
    places = torch.where(places < side, places, 2 * side - 1 - places)
    row = torch.zeros(side, dtype=torch.float64).index_add_(0, places, weights)
    return torch.outer(row, row).float()


def blurred(images: Tensor) -> Tensor:
    """Pictures `[n, 3, H, W]` blurred as in RISE: normalised values, with zeros beyond the edges."""
    kernel = blur_kernel().to(images)
    return F.conv2d(images, kernel.expand(3, 1, -1, -1), padding=BLUR_SIDE // 2, groups=3)


def fill_of(kind: str, images: Tensor, normalize: Normalize) -> Tensor:
    """What replaces pixels of `[1, 3, H, W]`: zero (RISE), black (Chefer), blur or mean."""
    if kind == "blur":
        return blurred(images)
    if kind == "mean":
        return images.mean(dim=(-2, -1), keepdim=True).expand_as(images)
    zero = torch.zeros_like(images)
    return zero if kind == "zero" else normalize(zero.float()).to(images)


def in_8_bits(images: Tensor, normalize: Normalize) -> npt.NDArray[np.uint8]:
    """A normalised picture `[1, 3, H, W]` as RGB, `[H, W, 3]`."""
    black, white = (
        normalize(torch.full((1, 3, 1, 1), value, device=images.device)).float().to(images.device)
        for value in (0.0, 1.0)
    )
    pixels = ((images.float() - black) / (white - black)).clamp(0, 1).mul(255).round().byte()[0]
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


# ---------------------------------------------------------------------------------------------- the picture and its map
@dataclass(frozen=True)
class OtherMaps:
    """Other maps by the same method, for metrics that compare maps."""

    of_picture: Callable[[Tensor], Tensor]  # a changed picture [1, 3, H, W] normalised → the same name's map [H, W]
    of_other_name: Callable[[], Tensor]  # the map of the name that fits the picture best after the one in question
    of_random_tower: Callable[[float], Tensor]  # share of the tower's layers, from the top, with random weights → map
    # key, pictures [n, 3, H, W] normalised that do not depend on the map → maps [n, H, W] of the same name; all methods
    # share the passes of a key
    of_pictures: Callable[[object, Tensor], Tensor]


@dataclass(frozen=True)
class Judged:
    """One picture with a name and a method's map."""

    images: Tensor  # [1, 3, H, W] normalised: the picture as the tower sees it
    heat: Tensor  # [H, W] float32 in 0–1 over the same pixels
    target: int  # index of the name among all names
    label: int | None  # index of the true name; None where it is not known
    scorer: Scorer  # scores changed pictures
    normalize: Normalize
    options: FaithfulnessOptions = PUBLISHED  # of the protocol
    shared: dict[Any, Any] = field(default_factory=dict)  # what does not depend on the map, for all maps of the picture
    others: OtherMaps | None = None  # further maps by the same method; None for a map that another tool made
    seed: int = 0  # of the random draws for this picture

    @property
    def pixels(self) -> int:
        """How many pixels the input has."""
        return self.images.shape[-2] * self.images.shape[-1]

    @property
    def steps(self) -> list[int]:
        """How many pixels are gone after each step of deletion and insertion, from 0 to all."""
        step = -(-self.pixels // min(self.options.steps or STEPS, self.pixels))
        return [*range(0, self.pixels, step), self.pixels]  # the last step may be shorter, as in RISE

    @cached_property
    def order(self) -> Tensor:
        """`[H, W]` for each pixel, how many are removed before it: the hottest first, of equal ones row by row."""
        order = self.heat.flatten().argsort(descending=True, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return place.view(self.heat.shape)

    def scores(self, count: int, make: Make) -> Scores:
        """Scores `count` pictures, which `make` makes, by the name; see `Scorer`."""
        return self.scorer(count, make, self.target)

    def once(self, key: object, make: Callable[[], R]) -> R:
        """The result of `make`, which must not depend on the map, computed once for all maps of the picture."""
        if key not in self.shared:
            self.shared[key] = make()
        made: R = self.shared[key]
        return made

    @property
    def original(self) -> Scores:
        """The scores of the picture as it is, `[1]`."""
        return self.once(("original", self.target), lambda: self.scores(1, lambda *_: self.images))

    @cached_property
    def masked(self) -> Scores:
        """The scores of the picture times its map, `[1]`; for all metrics that need it."""
        return self.scores(1, lambda *_: self.images * self.heat.to(self.images))

    @property
    def drop(self) -> float:
        """The share of the picture's probability that is lost when the map masks it; 0 of a probability of 0."""
        before, after = float(self.original.probability), float(self.masked.probability)
        return max(0.0, before - after) / before if before else 0.0

    @property
    def meant(self) -> int:
        """The index of the true name, or, where that is not known, of the model's prediction for the picture."""
        return int(self.original.first) if self.label is None else self.label

    def removing(self, counts: Sequence[int], kind: str) -> Make:
        """Makes pictures without their hottest pixels, so many of each; `kind` as in `fill_of`."""
        return self._without(counts, kind, lambda limit: self.order < limit)

    def keeping(self, counts: Sequence[int], kind: str) -> Make:
        """Makes pictures with their hottest pixels only, so many of each; `kind` as in `fill_of`."""
        return self._without(counts, kind, lambda limit: self.order >= limit)

    def _without(self, counts: Sequence[int], kind: str, removed_at: Callable[[Tensor], Tensor]) -> Make:
        limits = torch.tensor(counts, device=self.order.device)
        fill = self.once(("fill", kind), lambda: fill_of(kind, self.images, self.normalize))

        def make(first: int, last: int) -> Tensor:
            removed = removed_at(limits[first:last, None, None, None])  # [n, 1, H, W]
            return torch.where(removed, fill, self.images)

        return make

    def empty(self, kind: str) -> Scores:
        """The scores of the picture with all pixels removed, `[1]`."""
        make = self.removing([self.pixels], kind)
        return self.once(("empty", kind, self.target), lambda: self.scores(1, make))


class FaithfulnessMetric(ABC):
    """A faithfulness metric: measures one map by numbers, and by the curves that they are computed from."""

    name: ClassVar[str]  # as the registry has it
    position: ClassVar[int] = 100  # its place wherever metrics are listed
    paper: ClassVar[str]  # authors and year
    numbers: ClassVar[Mapping[str, Number]]  # key → what it is
    curves: ClassVar[Mapping[str, Axis]] = {}  # name → its horizontal axis; the report draws them
    needs_method: ClassVar[bool] = False  # whether it needs other maps by the same method

    @abstractmethod
    def measure(self, judged: Judged) -> Measured:
        """The numbers and curves of one map; a `ModelError` where the tower gave no number."""


# ----------------------------------------------------------------------------------------------- areas and correlations
def area(curve: Sequence[float]) -> float:
    """The area under a curve of n scores at equal distances: (Σ − first/2 − last/2)/(n − 1); RISE's."""
    return float((sum(curve) - curve[0] / 2 - curve[-1] / 2) / (len(curve) - 1))


def pearson(a: Tensor, b: Tensor) -> float | None:
    """The correlation of two series of numbers; None where one of them is constant."""
    a, b = a.flatten().double(), b.flatten().double()
    a, b = a - a.mean(), b - b.mean()
    spread = float(a.norm() * b.norm())
    return None if spread <= 1e-12 * len(a) else float((a @ b) / spread)


def spearman(a: Tensor, b: Tensor) -> float | None:
    """The correlation of the ranks of two maps, equal values with their mean rank; None where a map is flat."""
    from scipy.stats import rankdata  # here: its import takes half a second

    return pearson(*(torch.from_numpy(rankdata(one.flatten().cpu().numpy())) for one in (a, b)))


# ------------------------------------------------------------------------------------------------------------ measuring
SEED = 0  # of the random tower


@dataclass(frozen=True)
class SeenPicture:
    """A picture as the tower sees it, and the name that is measured."""

    id: str  # which picture; it seeds the random draws
    picture: Image.Image
    images: Tensor  # [1, 3, H, W] normalised
    target: int  # index of the name among the known names
    second: int  # index of the other name that fits best; equal to `target` where there is only one name
    label: int | None  # index of the true name; −1 where the model does not know that name, None where it is not known
    probability: float  # softmax over all names, of the name
    cosine: float  # of picture and name
    shared: dict[Any, Any] = field(default_factory=dict)  # results that do not depend on the map, for all its maps


class Faithfulness:
    """Measures maps of pictures with one model.

    Args:
        localizer: model, views and refinements of the maps. It must squash pictures onto the input, so that maps and
            removed pixels are of the whole picture.
        names: the names that the softmax is over; those that the model does not know are left out (`known`).
        methods: name → options; empty where only maps of other tools are measured.

    Example:
        >>> from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
        >>> localizer = Localizer("mini", method="cam", resize="squash", min_presence=0)
        >>> metrics = chosen_metrics(["deletion"])
        >>> options = FaithfulnessOptions(steps=2)
        >>> measurer = Faithfulness(localizer, ["cat", "dog", "tree"], metrics, {"cam": {}}, options)
        >>> seen = measurer.see("a", np.full((64, 64, 3), 99, np.uint8))
        >>> 0 <= measurer.measure(seen)["cam"].values["deletion"] <= 1
        True
    """

    def __init__(
        self,
        localizer: Localizer,
        names: Sequence[str],
        metrics: Sequence[FaithfulnessMetric],
        methods: Mapping[str, Mapping[str, Any]],
        options: FaithfulnessOptions = PUBLISHED,
    ) -> None:
        self.localizer, self.metrics, self.methods, self.options = localizer, tuple(metrics), dict(methods), options
        self.backbone: Backbone = localizer.backbone
        flow = localizer.flow
        if flow.preparation.resize != "squash":
            raise UsageError(
                f"expected resize squash, got {flow.preparation.resize}: faithfulness is measured on whole pictures"
            )
        if methods:
            flow.tasks.of(methods)  # refuses what does not run on the tower
        heads = prompts.parse(names, contrasts=False).names
        self.unknown = localizer.unknown_names(names)
        self.known = [entry for entry, head in zip(names, heads, strict=True) if head not in self.unknown]
        if not self.known:
            reason = next(iter(self.unknown.values()), "none was given")
            raise UsageError(f"expected a name that {self.backbone.name} knows: {reason}")
        self._place = {entry: index for index, entry in enumerate(self.known)}
        self._embeddings = localizer.embed_names(self.known)  # [K, D]
        self._random: dict[float, Localizer] = {}

    def scorer(self, reporter: Reporter = SILENT) -> Scorer:
        """What scores changed pictures by one of the known names."""
        flow = self.localizer.flow
        encode = flow.masked.encode or self.backbone.encode_image
        return Scorer(encode, self._embeddings, self.backbone.logit_scale, flow.options.batch_size, reporter)

    # -------------------------------------------------------------------------------------------------------- a picture
    def see(self, sample: str, picture: ImageLike, name: str | None = None, target: str | None = None) -> SeenPicture:
        """Reads a picture with its true name, if known; `target`: the name to measure, None for the options'."""
        with torch_modes(self.backbone.device):
            first = [self.known[0]]
            request = Request(sample, picture, first)
            prepared = self.localizer.flow.preparation.prepare(request, prompts.parse(first), sample)
            pixels = prepared.inputs[0][None].contiguous()  # [1, 3, H, W]
            images = self.backbone.normalize(pixels.to(self.backbone.device).float().div_(255))
            cosines = (self.backbone.encode_image(images).float() @ self._embeddings.T)[0]  # [K]
            label = None if name is None else self._place.get(name, -1)
            if target is None and self.options.target == "label":
                target = name or ""
            place = int(cosines.argmax()) if target is None else self._place.get(target, -1)
            if place < 0:
                raise InputError(f"{sample}: {self.backbone.name} does not know the name {target!r}: leave it out")
            others = cosines.clone()
            others[place] = -torch.inf
            second = int(others.argmax()) if len(others) > 1 else place
            probability = float((self.backbone.logit_scale * cosines).softmax(dim=0)[place])
            return SeenPicture(
                sample, prepared.picture.image, images, place, second, label, probability, float(cosines[place])
            )

    def maps(
        self, seen: SeenPicture, methods: Sequence[str] | None = None, reporter: Reporter = SILENT
    ) -> dict[str, FloatArray]:
        """The map `[H, W]` of each method (None: all) over the tower's input, for the picture's name."""
        made = self._maps(self.localizer, [seen.picture], self.known[seen.target], seen.images, methods, reporter)
        return {name: maps[0] for name, maps in made.items()}

    def _maps(
        self,
        localizer: Localizer,
        pictures: Sequence[Image.Image],
        name: str,
        images: Tensor,
        methods: Sequence[str] | None,
        reporter: Reporter,
    ) -> dict[str, FloatArray]:
        """Method → the maps of the pictures, `[n, H, W]` of the size of `images`."""
        chosen = {method: self.methods[method] for method in self.methods if methods is None or method in methods}
        hw = (images.shape[-2], images.shape[-1])
        results = list(localizer.compare(list(pictures), [name], chosen, reporter=reporter))
        return {method: np.stack([result[method].maps_over_picture(hw)[0] for result in results]) for method in chosen}

    # ---------------------------------------------------------------------------------------------------------- numbers
    def measure(self, seen: SeenPicture, reporter: Reporter = SILENT) -> dict[str, Measured]:
        """The numbers and curves of each method's map; what the maps share is cached in `seen`."""
        return {
            name: self.measure_map(seen, heat, self.others(seen, name, reporter), reporter)
            for name, heat in self.maps(seen, reporter=reporter).items()
        }

    def measure_map(
        self, seen: SeenPicture, heat: FloatArray, others: OtherMaps | None = None, reporter: Reporter = SILENT
    ) -> Measured:
        """Numbers and curves of any tool's map `[h, w]`; `others`: further maps by its method."""
        with torch_modes(self.backbone.device):
            size = (seen.images.shape[-2], seen.images.shape[-1])
            warmth = torch.from_numpy(np.ascontiguousarray(heat, dtype=np.float32)).to(seen.images.device)
            if warmth.shape != size:
                warmth = F.interpolate(warmth[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
            judged = Judged(
                seen.images, warmth, seen.target, seen.label, self.scorer(reporter), self.backbone.normalize,
                self.options, seen.shared, others, zlib.crc32(seen.id.encode()),
            )  # fmt: skip
            values: dict[str, float | None] = {}
            curves: dict[str, Sequence[float | None]] = {}
            for metric in self.metrics:
                measured = metric.measure(judged)
                if wrong := [one for one in measured.values.values() if one is not None and not math.isfinite(one)]:
                    got = f"got {wrong[0]}: correct it"
                    raise UsageError(f"expected a number of each map, or None, from the metric {metric.name}, {got}")
                values |= measured.values
                curves |= measured.curves
            return Measured(values, curves)

    # ------------------------------------------------------------------------------------------------------- other maps
    def others(self, seen: SeenPicture, method: str, reporter: Reporter = SILENT) -> OtherMaps:
        """Further maps of a picture by one method; where they can, all methods share the forward pass."""
        name = self.known[seen.target]

        def shared(key: object, share: float = 0, name: str = name, images: Tensor | None = None) -> Tensor:
            if key not in seen.shared:
                seen.shared[key] = heat(None, share, name, images)
            return torch.from_numpy(seen.shared[key][method]).to(seen.images.device)  # [n, H, W]

        def heat(only: Sequence[str] | None, share: float, name: str, images: Tensor | None) -> dict[str, FloatArray]:
            pictures = [seen.picture]
            if images is not None:
                pictures = [Image.fromarray(in_8_bits(image[None], self.backbone.normalize)) for image in images]
            return self._maps(self._randomised(share), pictures, name, seen.images, only, reporter)

        return OtherMaps(
            of_picture=lambda images: torch.from_numpy(heat([method], 0, name, images)[method][0]).to(images.device),
            of_other_name=lambda: shared(("maps", seen.second), name=self.known[seen.second])[0],
            of_random_tower=lambda share: shared(("random tower", share, seen.target), share)[0],
            of_pictures=lambda key, images: shared((key, seen.target), images=images),
        )

    def _randomised(self, share: float) -> Localizer:
        """The localizer whose tower has a share of its weights shuffled, from the top; made once."""
        if not share:
            return self.localizer
        if share not in self._random:
            method, method_options = next(iter(self.methods.items()))
            model = with_random_weights(self.backbone, share, SEED)
            options = self.localizer.options.but(
                model=model, pretrained=None, recipe=None, method=method, method_options=method_options,
                text_cache=False, memory=None,
            )  # fmt: skip
            self._random[share] = Localizer(**options.changed())
        return self._random[share]


def with_random_weights(backbone: Backbone, share: float, seed: int) -> Any:
    """A copy whose last weight tensors' values are shuffled; the share is from the output down."""
    if not isinstance(backbone, nn.Module):
        raise UsageError(f"expected a model that is a torch module, got {backbone.name}: leave randomisation out")
    copied = copy.deepcopy(backbone)
    named = copied.named_parameters()
    tensors = [tensor for name, tensor in named if not name.startswith("text.") and tensor.numel() > 1]
    with _Uses() as uses:
        copied.encode_image(torch.zeros(1, 3, *copied.input_hw, dtype=torch.float32))
    # A module lists its own parameters, such as a ViT's projection, before those of its parts. Unused ones come last.
    from_top = sorted(tensors, key=lambda tensor: uses.place.get(id(tensor), -1), reverse=True)
    chosen = {id(tensor) for tensor in from_top[: round(share * len(tensors))]}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            if id(tensor) in chosen:
                flat = tensor.detach().flatten().cpu()
                tensor.copy_(flat[torch.randperm(len(flat), generator=generator)].view_as(tensor))
    return copied


class _Uses(TorchFunctionMode):
    """While it is entered, `place` records in which order torch's functions use parameters first: by id."""

    def __init__(self) -> None:
        super().__init__()
        self.place: dict[int, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function, and records the parameters that it is given."""
        result = func(*args, **(kwargs or {}))
        # Not where the result is a fact like a tensor's dtype.
        if isinstance(result, Tensor | tuple | list) and not isinstance(result, torch.Size):
            for argument in (*args, *(kwargs or {}).values()):
                for each in argument if isinstance(argument, tuple | list) else (argument,):
                    if isinstance(each, nn.Parameter):
                        self.place.setdefault(id(each), len(self.place))
        return result
