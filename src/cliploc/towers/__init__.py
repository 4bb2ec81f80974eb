"""Models with an image and a text tower: the only code that knows their internals. `create("mini")` builds one."""

from typing import TYPE_CHECKING

from cliploc.support.imports import on_first_use

if TYPE_CHECKING:
    from cliploc.towers._backbone import Backbone
    from cliploc.towers._catalogue import (
        GuideEntry,
        ModelEntry,
        Structure,
        create,
        guides,
        models,
        refuse_unknown,
        refuse_unknown_guide,
        structure_of,
    )
    from cliploc.towers._guides import create_guide
    from cliploc.towers._layers import precision_name, resolve_precision
    from cliploc.towers._transformers_folder import from_pretrained, model_from_pretrained

__getattr__ = on_first_use(
    __name__,
    {
        "cliploc.towers._catalogue": [
            *("GuideEntry", "ModelEntry", "Structure", "create", "guides", "models"),
            *("refuse_unknown", "refuse_unknown_guide", "structure_of"),
        ],
        "cliploc.towers._backbone": ["Backbone"],
        "cliploc.towers._guides": ["create_guide"],
        "cliploc.towers._layers": ["precision_name", "resolve_precision"],
        "cliploc.towers._transformers_folder": ["from_pretrained", "model_from_pretrained"],
    },
)
