"""Names to things, and what a wrong name is told."""

import sys

import pytest

from cliploc.errors import UnknownNameError
from cliploc.evaluate.tasks.faithfulness.metrics import faithfulness_metrics
from cliploc.methods import methods
from cliploc.refine import refinements
from cliploc.registry import Registry, module_names
from cliploc.towers import models
from tests.commands import python


def filled(*names):
    registry: Registry[str] = Registry("method")
    for name in names:
        registry.register(name, name.upper())
    return registry


def test_a_name_is_taken_once_but_the_same_thing_may_come_again():
    registry: Registry[object] = Registry("method")
    thing = object()
    assert registry.register("cam", thing) is thing
    assert registry.register("cam", thing) is thing  # a module that is imported again
    with pytest.raises(ValueError, match="method 'cam' is registered twice: choose another name"):
        registry.register("cam", object())
    assert registry.get("cam") is thing


@pytest.mark.parametrize(
    ("asked", "near"), [("gradcam", "grad_cam"), ("grad cam", "grad_cam"), ("vit-b-16", "ViT-B-16")]
)
def test_an_unknown_name_is_told_the_nearest_first(asked, near):
    with pytest.raises(UnknownNameError) as error:
        filled("grad_cam", "layer_cam", "ViT-B-16", "RN50").get(asked)
    text = str(error.value)
    assert text.startswith(f"unknown method {asked!r}: did you mean {near}"), text
    assert text.endswith("there are RN50, ViT-B-16, grad_cam, layer_cam"), text


def test_nothing_near_gives_the_list_alone():
    with pytest.raises(UnknownNameError) as error:
        filled("cam", "vl_score").get("zebra")
    assert str(error.value) == "unknown method 'zebra': there are cam, vl_score"
    with pytest.raises(UnknownNameError, match=r"^unknown method 'cam': there are none$"):
        filled().get("cam")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose modules register themselves, as those of backbones and saliency do."""
    folder = tmp_path / "plugins_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("from cliploc.registry import Registry\nthings = Registry('thing', __name__)\n")
    (folder / "b.py").write_text("from plugins_of_a_test import things\nthings.register('b', 2)\n")
    (folder / "a.py").write_text("from plugins_of_a_test import things\nthings.register('a', 1)\n")
    (folder / "_helper.py").write_text("raise AssertionError('a private module must not be imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith("plugins_of_a_test")]:
        del sys.modules[name]


def things():
    import plugins_of_a_test

    return plugins_of_a_test.things


def test_a_new_file_is_all_that_a_new_thing_needs_and_is_imported_with_what_it_looks_up_alone(package):
    (package / "c.py").write_text("from plugins_of_a_test import things\nthings.register('c', things.get('a') + 2)\n")
    registry = things()
    assert "plugins_of_a_test.c" not in sys.modules
    assert registry.get("c") == 3
    assert "plugins_of_a_test.b" not in sys.modules
    assert registry.names() == ["a", "b", "c"]
    assert list(registry) == [1, 2, 3]


def test_a_broken_module_is_named_every_time(package):
    (package / "c.py").write_text("import no_such_module_anywhere\n")
    registry = things()
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
            registry.get("c")


def test_a_name_is_refused_without_an_import_where_the_names_are_listed(package):
    registry: Registry[int] = Registry("thing", "plugins_of_a_test", listed=lambda: module_names("plugins_of_a_test"))
    registry.check_known("a")
    with pytest.raises(UnknownNameError, match=r"^unknown thing 'c': there are a, b$"):
        registry.check_known("c")
    registry.register("c", 3)  # of a module that the user has imported
    registry.check_known("c")
    assert not [name for name in sys.modules if name.startswith("plugins_of_a_test.")]


WITHOUT_IMPORT = """
import json, sys
from cliploc.towers import models
from cliploc.errors import UnknownNameError
from cliploc.evaluate.tasks.faithfulness.metrics import (faithfulness_metrics)
from cliploc.refine import refinements
from cliploc.methods import methods

def known(registry):
    try:
        registry.check_known("no such name")
    except UnknownNameError as error:
        return error.known

registries = [methods, models, refinements, faithfulness_metrics]
before = [known(one) for one in registries]
assert not {"torch", "open_clip"} & set(sys.modules)
assert [one.known_names() for one in registries] == before
assert [one.names() for one in registries] == before
assert [known(one) for one in registries] == [one.known_names() for one in registries] == before
print(json.dumps([len(one) for one in before]))
"""


def test_the_names_told_without_an_import_are_those_that_there_are():
    """In a process of its own, in which open_clip has not been imported: its files are read."""
    ran = python("-c", WITHOUT_IMPORT, check=False)
    counts = [len(one.names()) for one in (methods, models, refinements, faithfulness_metrics)]
    assert ran.stdout == f"{counts}\n", ran.stderr
