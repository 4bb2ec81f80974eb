"""The gallery shows every registered method that the given towers can run, and names the others."""

import re
from pathlib import Path

import pytest
from PIL import Image
from tools.make_gallery import SHOWN, make_gallery

from cliploc import Localizer
from cliploc.saliency import fitting, methods
from tests.tiny import tower


@pytest.mark.parametrize("kinds", [("gap_cnn",), ("gap_cnn", "vit")])
def test_every_method_of_the_registry_is_in_it(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    starts = {"gap_cnn": "cam", "vit": "maskclip"}
    localizers = [Localizer(tower(kind, (5, 6)), method=starts[kind], min_presence=0) for kind in kinds]
    make_gallery(tmp_path, localizers, [localizers[-1].backbone.name])
    page = (tmp_path / "README.md").read_text()
    sections, _, left_out = page.partition("## Not shown")
    shown = re.findall(r"`(\w+)`", "".join(re.findall(r"^`\w+`(?:, `\w+`)*$", sections, re.MULTILINE)))
    looking = [m for m in methods if m.family != "baseline"]
    expected = [m.name for localizer in localizers for m in looking if m.name in fitting(localizer.backbone)]
    assert shown == expected
    assert set(re.findall(r"`(\w+)`", left_out)) == {m.name for m in looking} - set(expected)
    sheets = re.findall(r"!\[[^]]*\]\((.*?)\)", page)
    assert len(sheets) == len(SHOWN) * len(kinds)
    for sheet in sheets:
        with Image.open(tmp_path / sheet) as picture:
            picture.load()
    assert f"## `{localizers[-1].backbone.name}` · random weights" in page
