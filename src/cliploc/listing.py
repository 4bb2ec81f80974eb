"""The lists of the command line for programs: names of models, methods, datasets, metrics and formats, with plugins."""

from typing import Literal

from cliploc import backbones, saliency
from cliploc import formats as exports
from cliploc.evaluate import data as datasets
from cliploc.evaluate import metrics
from cliploc.methods._infra.method import Family
from cliploc.towers.tower import TowerKind
from cliploc.values import Role


def list_models(*, kind: TowerKind | None = None, method: str | None = None, usable: bool = True) -> list[str]:
    """The names that `Localizer(model=…)` takes, besides `hf-hub:…` and `local-dir:…`.

    Args:
        kind: only those with this image tower, "cnn" or "vit".
        method: only those that this method runs on.
        usable: only those whose image tower an adapter supports; False for all that are known.

    Raises:
        UnknownNameError: an unknown method.

    Example:
        >>> "mini" in list_models(kind="cnn", method="cam")
        True
    """
    runs = None if method is None else saliency.find(method)
    return [
        model.name
        for model in backbones.models
        if kind in (None, model.kind)
        and (model.usable or not usable)
        and (runs is None or saliency.unfit_reason(runs, model) is None)
    ]


def list_methods(*, model: str | None = None, family: Family | None = None) -> list[str]:
    """The names that `Localizer(method=…)` takes.

    Args:
        model: only those that run on this model, a name of `list_models()`.
        family: only those of this family, such as "gradient".

    Raises:
        UnknownNameError: an unknown model.

    Example:
        >>> list_methods(model="mini", family="activation")
        ['cam']
    """
    entry = None if model is None else backbones.models.get(model.replace("/", "-"))
    return [
        method.name
        for method in saliency.methods
        if family in (None, method.family) and (entry is None or saliency.unfit_reason(method, entry) is None)
    ]


def list_datasets(*, role: Role | None = None) -> list[str]:
    """The names that `cliploc.evaluate.data.open_dataset` takes.

    Args:
        role: only those with a split of this role: to "tune" a threshold on, or to "report" numbers on.

    Example:
        >>> "voc" in list_datasets(role="report")
        True
    """
    return [
        reader.name for reader in datasets.readers if role is None or role in {split.role for split in reader.splits}
    ]


def list_metrics(*, truth: Literal["boxes", "masks"] | None = None) -> list[str]:
    """The names of the metrics that a benchmark computes, in the order of its tables.

    Args:
        truth: only those that compare with this truth: "boxes" or "masks".

    Example:
        >>> list_metrics(truth="masks")
        ['pxap', 'energy_in_masks', 'relevance_rank_masks']
    """
    return [metric.name for metric in metrics.all_metrics(truth)]


def list_exports() -> list[str]:
    """The names of the formats that `annotate(formats=…)` writes.

    Example:
        >>> list_exports()
        ['coco', 'csv', 'cvat', 'labelstudio', 'voc', 'yolo']
    """
    return exports.exports.names()
