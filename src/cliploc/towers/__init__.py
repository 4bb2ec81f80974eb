"""Models with an image and a text tower: the only code that knows their internals. `create("mini")` builds one."""

from typing import TYPE_CHECKING

from cliploc.support.imports import on_first_use

CATALOGUE = ["GuideEntry", "ModelEntry", "Structure", "check_guide", "check_model", "guides", "models"]
if TYPE_CHECKING:
    from cliploc.towers._backbone import Backbone
    from cliploc.towers._catalogue import GuideEntry, ModelEntry, Structure, check_guide, check_model, guides, models
    from cliploc.towers._create import create, structure_of
    from cliploc.towers._guides import create_guide
    from cliploc.towers._layers import precision_name, resolve_precision
    from cliploc.towers.open_clip import adapt

__getattr__ = on_first_use(
    __name__,
    {
        "cliploc.towers._catalogue": CATALOGUE,
        "cliploc.towers._backbone": ["Backbone"],
        "cliploc.towers._create": ["create", "structure_of"],
        "cliploc.towers._guides": ["create_guide"],
        "cliploc.towers._layers": ["precision_name", "resolve_precision"],
        "cliploc.towers.open_clip": ["adapt"],
    },
)
