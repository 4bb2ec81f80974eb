"""`Faithfulness`: measures the maps of several methods, by one model's scores among many names."""

import copy
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.tasks.faithfulness import judged as base
from cliploc.find import prompts
from cliploc.find.prepare import Request
from cliploc.find.running import torch_modes
from cliploc.images.reading import ImageLike
from cliploc.localizer import Localizer
from cliploc.options import FaithfulnessOptions
from cliploc.support.reporter import SILENT, Reporter
from cliploc.towers.tower import Backbone
from cliploc.values import FloatArray

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
        metrics: Sequence[base.FaithfulnessMetric],
        methods: Mapping[str, Mapping[str, Any]],
        options: FaithfulnessOptions = base.PUBLISHED,
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

    def scorer(self, reporter: Reporter = SILENT) -> base.Scorer:
        """What scores changed pictures by one of the known names."""
        flow = self.localizer.flow
        encode = flow.masked.encode or self.backbone.encode_image
        return base.Scorer(encode, self._embeddings, self.backbone.logit_scale, flow.options.batch_size, reporter)

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
    def measure(self, seen: SeenPicture, reporter: Reporter = SILENT) -> dict[str, base.Measured]:
        """The numbers and curves of each method's map; what the maps share is cached in `seen`."""
        return {
            name: self.measure_map(seen, heat, self.others(seen, name, reporter), reporter)
            for name, heat in self.maps(seen, reporter=reporter).items()
        }

    def measure_map(
        self, seen: SeenPicture, heat: FloatArray, others: base.OtherMaps | None = None, reporter: Reporter = SILENT
    ) -> base.Measured:
        """Numbers and curves of any tool's map `[h, w]`; `others`: further maps by its method."""
        with torch_modes(self.backbone.device):
            size = (seen.images.shape[-2], seen.images.shape[-1])
            warmth = torch.from_numpy(np.ascontiguousarray(heat, dtype=np.float32)).to(seen.images.device)
            if warmth.shape != size:
                warmth = F.interpolate(warmth[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
            judged = base.Judged(
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
            return base.Measured(values, curves)

    # ------------------------------------------------------------------------------------------------------- other maps
    def others(self, seen: SeenPicture, method: str, reporter: Reporter = SILENT) -> base.OtherMaps:
        """Further maps of a picture by one method; where they can, all methods share the forward pass."""
        name = self.known[seen.target]

        def shared(key: object, share: float = 0, name: str = name, images: Tensor | None = None) -> Tensor:
            if key not in seen.shared:
                seen.shared[key] = heat(None, share, name, images)
            return torch.from_numpy(seen.shared[key][method]).to(seen.images.device)  # [n, H, W]

        def heat(only: Sequence[str] | None, share: float, name: str, images: Tensor | None) -> dict[str, FloatArray]:
            pictures = [seen.picture]
            if images is not None:
                pictures = [Image.fromarray(base.in_8_bits(image[None], self.backbone.normalize)) for image in images]
            return self._maps(self._randomised(share), pictures, name, seen.images, only, reporter)

        return base.OtherMaps(
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
