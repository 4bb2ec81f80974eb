"""Rules between packages: private means private, a light import stays light, and an extra that is missing is named."""

import ast
import importlib
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tools.house import with_layers

import cliploc
from cliploc.errors import CliplocError, UnknownNameError, UsageError
from cliploc.evaluate.tasks.faithfulness.metrics import faithfulness_metrics
from cliploc.evaluate.train.train_settings import TrainOptions
from cliploc.methods import fitting, methods
from cliploc.options import AnnotateOptions, FaithfulnessOptions, Options, SegmentationOptions, option_of
from cliploc.refine import refinements
from cliploc.registry import Registry, module_names
from cliploc.runs.label_store import LabellingRun
from cliploc.support.imports import PACKAGES
from cliploc.towers import models
from cliploc.towers.tower import Needs
from cliploc.values import Boxes, ignored_label, rounded_below
from tests.commands import CAT, python
from tests.html_reader import Reader

PACKAGE = Path(cliploc.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Everything that a module imports from this package, names in full."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.startswith("cliploc."))


def private_owner(name: str) -> str:
    """The package or module whose own a name is: of `a.b._c.d`, `a.b`; "" of a public name."""
    parts = name.split(".")
    private = [index for index, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
    return ".".join(parts[: private[0]]) if private else ""


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def test_what_is_private_is_imported_by_its_own_package_only() -> None:
    """Else make it public there, or move it."""
    strangers = [
        (own, name)
        for own, tree in TREES.items()
        for name in imported(tree)
        if (owner := private_owner(name)) not in ("", "cliploc") and not f"{own}.".startswith(f"{owner}.")
    ]
    assert not strangers


def test_nobody_asks_whether_a_backbone_has_something() -> None:
    """What is not in the protocol is not asked for."""
    asked = [
        (own, ast.unparse(node))
        for own, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in ("getattr", "hasattr", "setattr")
    ]
    assert not [(own, one) for own, one in asked if re.search(r"\((\w+\.)*_?(backbone|tower)\b", one)]


def test_the_localizer_loads_no_report_and_no_training() -> None:
    loaded = set(python("-c", "import sys, cliploc.localizer; print(*sys.modules)").stdout.split())
    assert "cliploc.localizer" in loaded
    heavy = ("cliploc.evaluate", "cliploc.label", "cliploc.web", "cliploc.runs", "matplotlib", "jinja2", "open_clip")
    assert not loaded.intersection(heavy)


def test_contributing_shows_the_layers_of_the_import_contract() -> None:
    """`exhaustive` there has `lint-imports` refuse a file or folder without a layer."""
    root = Path(__file__).parents[1]
    page, contract = ((root / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "pyproject.toml"))
    assert "exhaustive = true" in contract
    assert with_layers(page) == page, "run python tools/house.py --layers"
    assert with_layers(page.replace("→ tower", "→")) == page  # the picture is made anew


def test_the_files_that_contributing_and_the_walks_name_are_there() -> None:
    root = Path(__file__).parents[1]
    for page in ("CONTRIBUTING.md", "docs/run.md"):
        for name in re.findall(r"`([a-z_/]+/(?:[a-z_]+\.(?:py|js))?)`", (root / page).read_text(encoding="utf-8")):
            assert (PACKAGE / name).exists() or (root / name).exists(), f"{page}: {name}"


# --------------------------------------------------------------------------------------------------------------- extras
OPTIONAL = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
FOR_DEVELOPERS = {"dev", "docs", "release", "test"}
ELSEWHERE = {  # extra → the test of its absence
    "autodistill": "tests/test_integrations.py::test_without_the_library_one_line_says_what_to_install",
    "fiftyone": "tests/test_integrations.py::test_without_the_library_one_line_says_what_to_install",
    "heic": "tests/images/test_images.py::test_without_pillow_heif_a_heic_file_names_what_to_install",
    "quantus": "tests/test_integrations.py::test_without_the_library_one_line_says_what_to_install",
    "refine": "tests/refine/test_contract.py::test_a_package_that_is_missing_is_named",
    "regions": "tests/find/segmentation/test_protocol.py::test_what_cannot_be_is_one_line",
    "sam": "tests/towers/test_sam.py",
    "segmentation": "tests/evaluate/data/test_labelled.py",
}


def with_boxes(root: Path) -> Path:
    root.mkdir()
    (root / "cat.jpg").write_bytes(CAT.read_bytes())
    (root / "boxes.csv").write_text("path,label,x0,y0,x1,y1\ncat.jpg,cat,0,0,400,300\n")
    return root


def labels(root: Path) -> Path:
    with_boxes(root)
    (root / "labels.txt").write_text("cat\n")
    return root


COMMANDS: dict[str, tuple[str, Callable[[Path], Path], str]] = {  # extra → package, folder, command
    "bench": ("pyarrow", with_boxes, "benchmark boxes --dataset folder --root {root} --method cam --out {out}"),
    "calibrate": ("sklearn", with_boxes, "calibrate {root} --truth folder --out {out}.json"),
    "ray": ("ray", labels, "annotate {root} --labels {root}/labels.txt --engine ray --out {out}"),
    "web": ("starlette", with_boxes, "serve --port 0"),
}


ALL_ABSENT = """
import json, sys
from cliploc.cli import main
for package, command in json.load(sys.stdin):
    sys.modules[package] = None
    assert main(command) == 2, command
    del sys.modules[package]
    assert "torch" not in sys.modules, command
"""


def test_every_extra_has_such_a_test() -> None:
    assert set(COMMANDS) | set(ELSEWHERE) == set(OPTIONAL) - FOR_DEVELOPERS
    assert set(PACKAGES) == set(OPTIONAL) - FOR_DEVELOPERS - {"fast"}  # without which results are the same


def test_without_its_packages_one_line_says_what_to_install_before_torch_is_imported_or_anything_written(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    absent = [
        (package, extra, command.format(root=folder(tmp_path / extra), out=out))
        for extra, (package, folder, command) in COMMANDS.items()
    ]
    absent += [("starlette", "web", "label-studio"), ("starlette", "web", f"review {out}")]
    asked = json.dumps([(package, command.split()) for package, _, command in absent])
    done = python("-c", ALL_ABSENT, input=asked, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    for line, (_, extra, _) in zip(done.stderr.splitlines(), absent, strict=True):
        assert f"pip install 'cliploc[{extra}]'" in line
    assert not out.exists()


# ----------------------------------------------------------- The public names: lists, errors, and what a notebook shows
DOCS = Path(__file__).parents[1] / "docs"
HOSTILE = '<img src=x onerror="alert(1)">&</li><script>alert(2)</script>'


def test_lists_hold_names_and_filter_them():
    assert {"mini", "mini-vit", "ViT-B-16"} <= set(cliploc.list_models())
    assert "mini-vit" in cliploc.list_models(kind="vit")
    assert "mini" not in cliploc.list_models(kind="vit")
    assert "mini" not in cliploc.list_models(method="gem")
    assert set(cliploc.list_models()) < set(cliploc.list_models(usable=False))
    assert {"cam", "gem"} <= set(cliploc.list_methods())
    assert cliploc.list_methods(model="ViT-B/16") == cliploc.list_methods(model="ViT-B-16")
    from cliploc.towers import models

    assert tuple(cliploc.list_methods(model="ViT-B-16")) == fitting(models.get("ViT-B-16"))
    perturbing = {"score_cam", "gscore_cam", "vl_score", "rise", "occlusion", "m2ib"}
    assert set(cliploc.list_methods(family="perturbation")) == perturbing
    for role in ("report", "tune"):  # whichever of their splits it is
        assert {"wsol", "coco"} <= set(cliploc.list_datasets(role=role))
    assert cliploc.list_metrics()[0] == "localization"
    assert cliploc.list_metrics(truth="masks") == ["pxap", "energy_in_masks", "relevance_rank_masks"]
    assert {"coco", "yolo"} <= set(cliploc.list_exports())


def test_errors_are_pythons_own_too():
    for kind in (CliplocError, cliploc.UsageError, ValueError):
        with pytest.raises(kind):
            cliploc.Options(threshold=2)
    for kind in (cliploc.UsageError, ValueError, KeyError):
        with pytest.raises(kind):
            cliploc.Localizer(method="no such method")
    assert not issubclass(cliploc.InputError, ValueError)


def test_every_public_name_is_there_and_completes():
    assert set(cliploc.__all__) <= set(dir(cliploc))
    assert cliploc.__all__ == sorted(cliploc.__all__)


def test_the_document_of_the_api_names_every_public_name():
    said = set(re.findall(r"`(?:cliploc\.)?([A-Za-z_]+)", (DOCS / "api.md").read_text(encoding="utf-8")))
    assert set(cliploc.__all__) <= said


@pytest.fixture(scope="module")
def found() -> cliploc.Localization:
    picture = Image.new("RGB", (64, 48), "red")
    return cliploc.Localizer(recipe="fast")(picture, ["cat", HOSTILE, "dog"])


def test_what_a_notebook_shows_has_a_picture_and_a_line_for_each_name_whatever_they_are(found):
    page = Reader(found._repr_html_())
    assert [tag for tag, _ in page.tags] == ["img", "ul", "li", "li", "li"]
    [picture] = page.all("img")
    assert set(picture) == {"alt", "src"}
    assert picture["src"].startswith("data:image/jpeg;base64,")
    assert picture["alt"] == repr(found)
    assert re.fullmatch(r"<Localization of image 0, 64×48: cat.*dog.*>", repr(found))
    assert HOSTILE in page.text
    assert "1 boxes" not in page.text


def test_an_overlay_takes_what_it_names(found):
    assert found.overlay(["cat"], opacity=0.2, heatmap=False, boxes=False).getpixel((3, 3)) == (255, 0, 0)
    assert np.array_equal(found.overlay(), found.overlay(None, None, True, True))
    with pytest.raises(TypeError):
        found.overlay(colour="red")


def test_annotate_takes_options_as_one_value_and_one_by_one(tmp_path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    options = cliploc.Options(method="layer_cam", batch_size=2, device="cpu")
    for name, more in (("a", {"options": options}), ("b", {"options": options, "method": "cam"}), ("c", {})):
        cliploc.annotate([tmp_path / "a.png"], ["cat"], tmp_path / name, formats=["csv"], **more)
    methods = []
    for name in "abc":
        with LabellingRun.open(tmp_path / name) as run:
            methods.append(run.settings["method"])
    assert methods == ["layer_cam", "cam", "cam"]
    for wrong in ({"colour": 3}, {"options": cliploc.Options(text_cache=False)}):
        with pytest.raises(cliploc.UsageError, match="option of"):
            cliploc.annotate([tmp_path / "a.png"], ["cat"], tmp_path / "d", **wrong)


@pytest.mark.parametrize("name", ["", ".towers", ".methods"])
def test_what_is_imported_on_first_use_is_what_type_checkers_see(name):
    name = f"cliploc{name}"
    package = importlib.import_module(name)
    imports = [one for one in ast.walk(ast.parse(inspect.getsource(package))) if isinstance(one, ast.ImportFrom)]
    names = {alias.name for one in imports if one.module not in ("__future__", "typing") for alias in one.names} - {"*"}
    assert len(names) > 5
    assert all(getattr(package, one) is not None for one in names)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing_of_the_kind'"):
        _ = package.nothing_of_the_kind


# ----------------------------------------------------------------------- Names to things, and what a wrong name is told
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


# ------------------------------------------------------------------------ Values and options refuse what they cannot be
indices = st.one_of(st.just("all"), st.lists(st.integers(-9, -1), max_size=4, unique=True).map(tuple))
needs = st.builds(Needs, st.lists(st.integers(-9, -1), max_size=4, unique=True).map(tuple), indices, indices)


def wanted(value):
    return set(range(-9, 0)) if value == "all" else set(value)


@given(needs, needs)
def test_the_union_of_needs_serves_both_and_no_more(a, b):
    union = a | b
    for field in ("features", "tokens", "attention"):
        both = wanted(getattr(a, field)) | wanted(getattr(b, field))
        assert wanted(getattr(union, field)) == both
        assert (getattr(union, field) == "all") == ("all" in (getattr(a, field), getattr(b, field)))
    assert union == b | a
    assert union | a == union
    assert wanted((a | Needs()).features) == wanted(a.features)


def boxes(n=3, **changes):
    values = {
        "xyxy": np.arange(4 * n, dtype=np.float32).reshape(n, 4),
        "score": np.linspace(1, 0, n, dtype=np.float32),
        "label": np.array([0, 1, 0][:n]),
        "names": ("cat", "dog", "bird"),
    }
    return Boxes(**{**values, **changes})


def test_boxes_of_a_name():
    assert len(boxes()) == 3
    assert boxes().of("cat").tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert boxes().of("bird").shape == (0, 4)
    with pytest.raises(UsageError, match=r"expected one of the names asked for \(cat, dog, bird\), got 'cow'"):
        boxes().of("cow")


def test_pixels_that_do_not_count_have_a_label_that_is_no_class():
    assert [ignored_label(classes) for classes in (2, 255, 256)] == [255, 255, 65535]


@given(st.floats(0, 1))
def test_a_number_below_the_least_does_not_look_as_large(value):
    shown = rounded_below(value, 0.5)
    assert (float(shown) < 0.5) == (value < 0.5) or value > 0.49995, "four digits"
    assert float(shown) == pytest.approx(value, abs=0.00501)


@pytest.mark.parametrize(
    "change",
    [
        {"xyxy": np.zeros((3, 5), np.float32)},
        {"xyxy": np.zeros((2, 4), np.float32)},
        {"score": np.zeros(2, np.float32)},
        {"label": np.zeros((3, 1), np.int64)},
    ],
    ids=["five numbers", "too few boxes", "too few scores", "labels in a column"],
)
def test_boxes_whose_parts_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match=r"expected xyxy \[n, 4\], score \[n\] and label \[n\], got"):
        boxes(**change)


# -------------------------------------------------------------------------------------------------------------- options


KINDS = (Options, SegmentationOptions, FaithfulnessOptions, AnnotateOptions, TrainOptions)
EVERY = [(kind, one) for kind in KINDS for one in fields(kind)]


@pytest.mark.parametrize(("kind", "one"), EVERY, ids=lambda one: getattr(one, "name", ""))
def test_every_option_refuses_what_it_cannot_be_in_one_line(kind, one):
    wrong = [object(), [object()]]
    if option_of(one).metavar in ("N", "0-1", "0-1|auto", "5%", "1,2", "1,1.5,2", "1-4096"):
        numbers = [True, False, float("nan"), float("inf"), 10**50, -1]
        wrong += numbers + [(1, number) for number in numbers]
    for value in wrong:
        with pytest.raises(UsageError, match=r"^expected [^\n]+, got [^\n]+$"):
            kind(**{one.name: value})
