"""cliploc's methods as explain functions of Quantus, and its metrics in ours: see docs/faithfulness.md."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from cliploc.errors import UsageError
from cliploc.evaluate.tasks.faithfulness import measure as base
from cliploc.images.geometry import RESAMPLING
from cliploc.localizer import Localizer
from cliploc.support.imports import install, not_installed
from cliploc.towers.tower import Backbone
from cliploc.values import FloatArray

try:
    import quantus  # noqa: F401
except ImportError as error:
    raise not_installed(error, install("quantus", "this")) from None


# ------------------------------------------------------------------------------------------------- methods for Quantus
class QuantusModel(nn.Module):
    """A localizer's model as a classifier of names, for Quantus.

    Its inputs are pictures as the tower sees them: `pictures`. What Quantus's randomisation resets is the image tower.

    Args:
        localizer: model and views; it must squash pictures.
        names: the classes; "cat|kitten" are synonyms.

    Raises:
        UsageError: a name that the model does not know, a localizer that does not squash, or no torch module.
    """

    backbone: Backbone  # with its text tower
    embeddings: Tensor  # [K, D] unit norm

    def __init__(self, localizer: Localizer, names: Sequence[str]) -> None:
        super().__init__()
        if localizer.flow.preparation.resize != "squash":
            raise UsageError(f"expected resize squash, got {localizer.flow.preparation.resize}: maps cover the input")
        if unknown := localizer.unknown_names(names):
            raise UsageError(f"expected names that {localizer.backbone.name} knows, got {next(iter(unknown))!r}")
        if not isinstance(localizer.backbone, nn.Module):
            raise UsageError(f"expected a model that is a torch module, got {localizer.backbone.name}")
        self.names, self.options = tuple(names), localizer.options
        self.input_hw = localizer.flow.preparation.input_hw
        object.__setattr__(self, "backbone", localizer.backbone)  # not a part of this module: its text tower stays
        self.image = nn.ModuleList(part for name, part in localizer.backbone.named_children() if name != "text")
        self.register_buffer("embeddings", localizer.embed_names(names))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[n, K]` of pictures `[n, 3, H, W]` normalised."""
        return self.backbone.logit_scale * (self.backbone.encode_image(images).float() @ self.embeddings.T)

    def pictures(self, images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
        """Pictures as the tower sees them, `[n, 3, H, W]` normalised: `x_batch` of Quantus."""
        height, width = self.input_hw
        how = RESAMPLING[self.backbone.interpolation]
        squashed = [image.convert("RGB").resize((width, height), how) for image in images]
        pixels = (
            torch.from_numpy(np.stack([np.asarray(picture) for picture in squashed])).permute(0, 3, 1, 2).float() / 255
        )
        prepared: npt.NDArray[np.float32] = self.backbone.normalize(pixels).float().cpu().numpy()
        return prepared


def explain(
    model: QuantusModel,
    inputs: npt.NDArray[np.floating[Any]],
    targets: npt.NDArray[np.integer[Any]],
    method: str = "cam",
    method_options: Mapping[str, Any] | None = None,
    **_: Any,  # what Quantus adds, such as the device
) -> FloatArray:
    """The maps `[n, 1, H, W]` in 0–1 of a method: `explain_func` of Quantus, with `explain_func_kwargs`.

    Pictures are rounded to 8 bits.

    Args:
        inputs: `[n, 3, H, W]` normalised.
        targets: `[n]` indices of the model's names.
    """
    options = model.options.but(
        model=model.backbone, pretrained=None, recipe=None, method=method, method_options=method_options or {},
        text_cache=False, memory=None,
    )  # fmt: skip
    images = torch.from_numpy(np.asarray(inputs, np.float32))
    pictures = [Image.fromarray(base.in_8_bits(image[None], model.backbone.normalize)) for image in images]
    names = [[model.names[int(target)]] for target in np.asarray(targets)]
    results = Localizer(**options.changed()).compare(pictures, names, {method: method_options or {}})
    hw = (images.shape[-2], images.shape[-1])
    return np.stack([result[method].maps_over_picture(hw) for result in results])


# --------------------------------------------------------------------------------------------------- metrics of Quantus
class _Scored(nn.Module):
    """What scores a judged picture, as a classifier."""

    def __init__(self, scorer: base.Scorer) -> None:
        super().__init__()
        self.logits = scorer.logits
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images)


def quantus_metric(
    key: str,
    make: Callable[[], Any],
    title: str,
    about: str,
    *,
    best: Literal["low", "high", ""] = "",
    needs_method: bool = False,
) -> type[base.FaithfulnessMetric]:
    """Registers a metric of Quantus for `benchmark faithfulness --metric KEY`, in a module given by `--import`.

    It gets one picture at a time, as the tower sees it, with the map in 0–1 and the model's probabilities.

    Args:
        key: its name here.
        make: makes the metric, such as `lambda: quantus.FaithfulnessCorrelation(normalise=False)`.
        title: heading of its column.
        about: one line that explains it.
        best: whether a low or a high number is better.
        needs_method: whether it asks for maps of changed pictures, such as those of robustness.

    Example:
        >>> import quantus
        >>> made = quantus_metric("gini", lambda: quantus.Sparseness(disable_warnings=True), "Gini", "of the heat")
        >>> made.name
        'gini'
    """

    def measure(self: base.FaithfulnessMetric, judged: base.Judged) -> base.Measured:  # noqa: ARG001
        def explained(model: Any, inputs: Any, targets: Any, **_: Any) -> FloatArray:  # noqa: ARG001
            assert judged.others is not None
            changed = torch.as_tensor(np.asarray(inputs)).to(judged.images)
            maps = [judged.others.of_picture(image[None]) for image in changed]  # each [H, W]
            return torch.stack(maps)[:, None].cpu().numpy()

        measured = make()(
            model=_Scored(judged.scorer), x_batch=judged.images.cpu().numpy(), y_batch=np.array([judged.target]),
            a_batch=judged.heat[None, None].cpu().numpy().copy(), channel_first=True, softmax=True,
            explain_func=explained if needs_method else None, device=str(judged.images.device),
        )  # fmt: skip
        values = np.asarray(measured, np.float64).ravel()
        if len(values) != 1:
            raise UsageError(f"expected one number for a picture from {key}, got {len(values)}: set return_aggregate")
        return base.Measured({key: float(values[0]) if np.isfinite(values[0]) else None})

    members = {
        "__doc__": about, "name": key, "paper": "Hedström et al. 2023, Quantus, JMLR", "needs_method": needs_method,
        "numbers": {key: base.Number(title, about, best)}, "measure": measure,
    }  # fmt: skip
    return base.faithfulness_metric(type(key, (base.FaithfulnessMetric,), members))
