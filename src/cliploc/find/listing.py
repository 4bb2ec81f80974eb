"""The names of models and methods, with plugins, for programs."""

from cliploc import methods as saliency
from cliploc import towers
from cliploc.methods import Family
from cliploc.towers.tower import TowerKind


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
    known = [model for model in towers.models if kind in (None, model.kind) and (model.usable or not usable)]
    return [model.name for model in known if runs is None or saliency.unfit_reason(runs, model) is None]


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
    entry = None if model is None else towers.models.get(model.replace("/", "-"))
    known = [method for method in saliency.methods if family in (None, method.family)]
    return [method.name for method in known if entry is None or saliency.unfit_reason(method, entry) is None]
