"""Two runs are the same only if everything that changes results is the same: every option is listed here once.

Each option of `cliploc.options.OPTIONS`, and each other parameter of a function or command, either has a second value,
with which the run must count as another one, or is harmless, with the reason. A parameter that is neither fails.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cliploc
from cliploc import options as config
from cliploc import towers
from cliploc.boxes import BoxRule
from cliploc.boxes.sides import LENGTH
from cliploc.cli import main
from cliploc.errors import UsageError
from cliploc.evaluate.data import subsets
from cliploc.evaluate.tasks.task import OTHER_SAMPLES
from cliploc.find.calibration import package_calibration
from cliploc.find.learnt import HOLDS_FOR, Learnt
from cliploc.find.memory import Memory
from cliploc.find.recipes import recipe_of
from cliploc.label.annotate import annotate
from cliploc.label.worker import RESERVED
from cliploc.localizer import Localizer
from cliploc.options import DEFAULTS, OPTIONS, RESULT_OPTIONS
from cliploc.web.service import Offer, Service
from cliploc.web.settings import KEYS, LIVE, Settings, command_lines, python_lines
from tests.tiny import tower, write_head

GRID = (8, 8)
PHOTO = Path(cliploc.__file__).parent / "demo_photos" / "cat.jpg"
OTHER_RUN = "holds a run with other settings"


def create(model: str = "mini", pretrained: str | None = None, device: str = "cpu", *, precision: str = "fp32") -> Any:
    """Tiny towers under the names of models: their weights depend on `pretrained`."""
    backbone = tower({"mini": "gap_cnn", "mini-vit": "vit"}[model], GRID, seed=0 if pretrained is None else 1)
    for part in backbone.children():
        part.to(towers.resolve_precision(precision, device))
    return backbone


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "create", create)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("head") / "head.safetensors", create())


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[object, Callable[[Path], Any]], Path]:
    """The folder of a run that several tests compare with; one that is refused leaves it as it is."""
    done: dict[str, Path] = {}

    def folder(what: object, run: Callable[[Path], Any]) -> Path:
        if str(what) not in done:
            out = tmp_path_factory.mktemp("run")
            run(out)
            done[str(what)] = out
        return done[str(what)]

    return folder


@dataclass(frozen=True)
class Second:
    """A second value of a parameter, and what else the two runs have in common."""

    value: Any
    base: Mapping[str, Any] = field(default_factory=dict)


def parameters(function: Callable[..., Any]) -> set[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {one.name for one in inspect.signature(function).parameters.values() if one.kind in kinds} - {"self"}


def assert_each_is_listed(names: set[str], seconds: Mapping[str, Any], harmless: Mapping[str, str]) -> None:
    """The two tables hold each name once, and every harmless one has a reason."""
    assert not names - seconds.keys() - harmless.keys(), "give a second value, or say why it cannot change results"
    assert not (seconds.keys() | harmless.keys()) - names, "no longer an option"
    assert not seconds.keys() & harmless.keys()
    assert all(len(reason) > 10 for reason in harmless.values())


# ---------------------------------------------------------------------------------------------------------- Localizer
OF_LOCALIZER: dict[str, Second] = {
    "model": Second("mini-vit", {"method": "grad_cam"}), "pretrained": Second("other"), "method": Second("layer_cam"),
    "method_options": Second({"stages": (-1, -2)}, {"method": "layer_cam"}),
    "head": Second("HEAD", {"method": "ts_cam+cam"}), "templates": Second("name-only"),
    "exemplars": Second((f"red=@{PHOTO}",)), "resize": Second("pad"),
    "image_size": Second(40), "scales": Second((1, 1.5)), "windows": Second((3.0,)), "flip": Second(True),
    "refine": Second(("affinity", "guided")), "threshold": Second(0.77), "components": Second("largest"),
    "min_area": Second(0.01), "max_boxes": Second(1), "nms_iou": Second(0.25), "split_peaks": Second(0.2),
    "min_score": Second(0.25), "min_presence": Second(0.25), "second_look": Second(True, {"method": "cam"}),
    "calibration": Second("CALIBRATION", {"method": "cam", "second_look": True}),
    "learnt": Second("LEARNT", {"method": "cam"}), "masks_by": Second("grabcut"), "precision": Second("bf16"),
    "masked_precision": Second("bf16"), "guide": Second("mini"), "batch_size": Second(3),
}  # fmt: skip
HARMLESS_IN_LOCALIZER = {name: one.harmless for name, one in OPTIONS.items() if one.harmless}


def test_every_option_is_listed() -> None:
    assert_each_is_listed(set(OPTIONS), OF_LOCALIZER, HARMLESS_IN_LOCALIZER)
    assert set(RESULT_OPTIONS) == OF_LOCALIZER.keys()
    assert parameters(Localizer.__init__) <= OPTIONS.keys()
    for name, second in OF_LOCALIZER.items():
        assert second.value != getattr(DEFAULTS, name), name


# Keys that only such runs have, so that older ones can be resumed.
OF_SOME = {"second_look", "first_look", "learnt", "reads_apart"}


def of_localizer(name: str, head: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two sets of arguments that differ in one parameter alone."""
    second = OF_LOCALIZER[name]
    base = {"device": "cpu", **second.base}
    if name == "head":  # TS-CAM runs on a CNN with a head only: the same name, another content
        return base | {"head": head}, base | {"head": write_head(head.with_name("other.safetensors"), create(), seed=1)}
    if name == "calibration":
        return base, base | {"calibration": write_calibration(head.with_name("calibration.json"))}
    if name == "learnt":
        return base, base | {"learnt": write_learnt(head.with_name("learnt.safetensors"), **base)}
    return base, {**base, name: second.value}


def write_calibration(path: Path) -> Path:
    """A calibration that differs from the package's."""
    own = package_calibration("mini")
    dataclasses.replace(own, right=dataclasses.replace(own.right, bias=own.right.bias + 0.1)).save(path)
    return path


def write_learnt(path: Path, **options: Any) -> Path:
    """What a run with these options has taught."""
    localizer = Localizer(**options)
    about = json.loads(json.dumps({**localizer.describe(), "teaching": localizer.teaching()}))
    weights, embedding = torch.ones(1, 12), torch.ones(1, localizer.backbone.embedding_size)
    sides, held = torch.zeros(1, LENGTH), {key: about[key] for key in HOLDS_FOR}
    learnt = Learnt(("red",), weights, torch.zeros(1), (0.5,), embedding, sides, held, torch.full((1, 2), torch.nan))
    path.write_bytes(learnt.content())
    return path


@pytest.mark.parametrize("name", OF_LOCALIZER)
def test_each_option_of_localizer_changes_its_description(name: str, head: Path) -> None:
    one, other = (Localizer(**arguments).describe() for arguments in of_localizer(name, head))
    assert one.keys() - OF_SOME == other.keys() - OF_SOME
    assert one != other
    assert json.dumps(one) != json.dumps(other)  # as a manifest holds it


def test_what_is_harmless_and_what_is_only_said_otherwise_changes_nothing() -> None:
    plain, recipe = Localizer(device="cpu").describe(), recipe_of("mini")
    for same in (
        {"text_cache": False},
        {"memory": Memory()},
        {"device": None} if not torch.cuda.is_available() and not torch.backends.mps.is_available() else {},
        {"method": recipe.method, **recipe.options, "threshold": plain["threshold"]},
        {"recipe": "default", "scales": list(recipe.options["scales"])},
        {"templates": "default", "masked_precision": "fp32"},
    ):
        assert Localizer(**{"device": "cpu", **same}).describe() == plain


def test_the_description_has_every_field_of_the_box_rule_and_is_of_the_method_asked_for(head: Path) -> None:
    localizer = Localizer(method="cam", device="cpu")
    assert {one.name for one in dataclasses.fields(BoxRule)} <= localizer.describe().keys()
    other = localizer.describe("layer_cam", {"stages": (-1, -2)})
    assert other == Localizer(method="layer_cam", method_options={"stages": (-1, -2)}, device="cpu").describe()
    named, given = (
        Localizer(method="ts_cam", device="cpu", **how).describe()
        for how in ({"head": head}, {"method_options": {"head": str(head)}})
    )
    assert named == given


@pytest.mark.parametrize("how", ["head", "option"])
def test_a_head_replaced_under_the_same_name_is_another_run(how: str, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    arguments: dict[str, Any] = {"head": path} if how == "head" else {"method_options": {"head": str(path)}}
    described = []
    for seed in (0, 0, 1):
        write_head(path, create(), seed=seed)
        described.append(Localizer(method="ts_cam", device="cpu", **arguments).describe())
    assert described[0] == described[1] != described[2]


def test_weights_are_told_apart_by_pixels_normalised_otherwise() -> None:
    one, other = create(), create()
    other.mean = other.mean + 0.1  # no part of the state that is saved
    assert one.weights_id == create().weights_id
    assert one.weights_id != other.weights_id


# ----------------------------------------------------------------------------------------------------------- annotate
@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    pixels = np.full((40, 48, 3), 128, np.uint8)
    pixels[8:24, 8:28] = (255, 0, 0)
    Image.fromarray(pixels).save(root / "one.png")
    return root


def annotated(photos: Path, out: Path, changed: Mapping[str, Any]) -> Any:
    arguments = {
        "pictures": photos, "labels": ["red", "blue"], "out": out, "formats": ["csv"], "device": "cpu",
    }  # fmt: skip
    return annotate(**{**arguments, **changed})


@pytest.mark.parametrize("name", sorted(RESERVED - parameters(annotate)))
def test_options_of_the_model_that_annotate_settles_itself_are_refused(name: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not an option of the model here"):
        annotated(photos, tmp_path, {name: True})


def test_what_chooses_drafts_makes_no_other_annotation(photos: Path, once: Any) -> None:
    out, labels = once("annotate", lambda out: annotated(photos, out, {})), ["red @0.7", "blue"]
    one, more = {"min_presence": 0.1, "labels": labels, "unsure": True}, {"min_score": 0.1, "max_boxes": 1}
    for name, value in (one | more | {"share": {"red": 1}}).items():
        assert annotated(photos, out, {name: value}).computed == 0, name


def test_a_run_of_every_name_can_have_any_minimum_presence(photos: Path, once: Any) -> None:
    out = once("annotate all", lambda out: annotated(photos, out, {"min_presence": 0}))
    assert annotated(photos, out, {}).computed == 0


def test_a_contrast_makes_another_annotation(photos: Path, once: Any) -> None:
    out = once("annotate", lambda out: annotated(photos, out, {}))
    with pytest.raises(UsageError, match="also has red: name all that it has"):
        annotated(photos, out, {"labels": ["red~green", "blue"]})


# ---------------------------------------------------------------------------------------------------------- benchmark
pytest.importorskip("pyarrow")

from cliploc.evaluate.tasks.boxes.job import run_benchmark  # noqa: E402
from cliploc.runs.plan import ModelSetup, Setting  # noqa: E402
from tests.evaluate.samples import dataset, wsol_folder  # noqa: E402

SETUP = ModelSetup(config.BENCHMARK.but(device="cpu", batch_size=2))
SETTING = Setting("one", 0, "cam")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, the first of a class of the subset."""
    root = wsol_folder(tmp_path_factory.mktemp("data") / "wsol", 2)
    label = int((root / "metadata/class_labels.txt").read_text().splitlines()[0].split(",")[1])
    lines = (root / "synsets.csv").read_text().splitlines()
    first, *others = subsets.get("ten-classes").reasons
    lines[label + 1] = f"{label},{first},x"
    lines += [f"{len(lines) - 1 + number},{wnid},x" for number, wnid in enumerate(others)]
    (root / "synsets.csv").write_text("\n".join(lines) + "\n")
    return root


def other_dataset(root: Path, change: str) -> Any:
    whole = dataset(root)
    first, *others = whole.samples
    return {
        "samples": replace(whole, samples=(first,)),
        "boxes": replace(whole, samples=(replace(first, boxes_xyxy=first.boxes_xyxy + 1), *others)),
        "masks": replace(whole, samples=(replace(first, masks=(root / "a.png",)), *others)),
        "ignore": replace(whole, samples=(replace(first, ignore=root / "a.png"), *others)),
        "synonyms": replace(whole, classes=tuple(replace(one, synonyms=(one.name, "thing")) for one in whole.classes)),
        "name": replace(whole, name="another"),
    }[change]


def benchmarked(root: Path, out: Path, setup: ModelSetup = SETUP, setting: Setting = SETTING, **changed: Any) -> Any:
    arguments: dict[str, Any] = {"dataset": dataset(root), "shard": 2, "workers": 0, **changed}
    return run_benchmark(arguments.pop("dataset"), [setup], [setting], out, **arguments)


@pytest.mark.parametrize("change", ["samples", "boxes", "masks", "ignore", "synonyms", "name"])
def test_another_dataset_makes_another_benchmark(change: str, root: Path, once: Any) -> None:
    out = once(SETTING, lambda out: benchmarked(root, out))
    with pytest.raises(UsageError, match=f"{OTHER_RUN}|{OTHER_SAMPLES}"):
        benchmarked(root, out, dataset=other_dataset(root, change))


# -------------------------------------------------------------------------------------------------------- command line
ANNOTATE = ("annotate", "PHOTOS", "--labels", "LABELS", "--out", "OUT", "--format", "csv", "--device", "cpu")


# Of the commands' own options; those of `Localizer` change its description, which is part of the run.
OF_ANNOTATE_COMMAND: dict[str, tuple[str, ...]] = {
    "method": ("--method", "layer_cam"),
    "min_presence": ("--min-presence", "0"),  # every name is boxed then
    "masks": ("--masks",),
    "teach": ("--teach", "off"),
}
BASE_OF_COMMAND = {"option": ("--method=layer_cam",), "seed": ("--sample", "1")}
BENCHMARK = (
    *("benchmark", "boxes", "--dataset", "wsol", "--root", "ROOT", "--out", "OUT", "--device", "cpu"),
    *("--batch-size", "2"),
)
FAITHFULNESS = ("benchmark", "faithfulness", *BENCHMARK[2:], "--method=cam", "--no-baselines", "--steps=2")
PRESENCE = ("benchmark", "presence", *BENCHMARK[2:], "--method=cam")
OF_BENCHMARK_COMMAND: dict[str, tuple[str, ...]] = {
    "subset": ("--subset", "ten-classes"), "sample": ("--sample", "1"), "seed": ("--sample", "1", "--seed", "1"),
    "method": ("--method", "layer_cam"), "option": ("--method", "layer_cam", "-o", "stages=-1,-2"),
    "threshold": ("--threshold", "0.77"), "save_maps": ("--save-maps",),
}  # fmt: skip
OF_FAITHFULNESS_COMMAND: dict[str, tuple[str, ...]] = {
    "metric": ("--metric", "deletion"),
    "steps": ("--steps=3",),
    "baseline": ("--baseline", "mean"),
    "target": ("--target", "label"),
}


@pytest.fixture
def command(
    photos: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Path, Sequence[str]], tuple[int, str]]]:
    # No process that measures, which takes seconds to import torch, and no figures: they take longer than the pictures.
    monkeypatch.setattr(
        "cliploc.evaluate.tasks.boxes.job.run_benchmark",
        lambda *given, **more: run_benchmark(*given, **{**more, "workers": 0}),
    )
    monkeypatch.setattr("cliploc.evaluate.tasks.page.write_report", lambda *_, **__: None)
    (tmp_path / "labels.txt").write_text("red\nblue\n")
    (tmp_path / "other.txt").write_text("red\n")
    places = {
        "PHOTOS": photos, "LABELS": tmp_path / "labels.txt", "OTHER": tmp_path / "other.txt",
        "ROOT": root,
    }  # fmt: skip

    def run(out: Path, words: Sequence[str]) -> tuple[int, str]:
        code = main([str(out) if word == "OUT" else str(places.get(word, word)) for word in words])
        return code, capsys.readouterr().err

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


COMMANDS = {
    "annotate": (ANNOTATE, OF_ANNOTATE_COMMAND),
    "benchmark boxes": (BENCHMARK, OF_BENCHMARK_COMMAND),
    "benchmark faithfulness": (FAITHFULNESS, OF_FAITHFULNESS_COMMAND),
    "benchmark presence": (PRESENCE, {"negatives": ("--negatives", "random")}),
}


@pytest.mark.parametrize(("which", "name"), [(which, name) for which, (_, names) in COMMANDS.items() for name in names])
def test_each_option_of_the_commands_makes_another_run(
    which: str, name: str, command: Any, once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A package that is not installed here is refused before a run is compared.
    monkeypatch.setattr("cliploc.cli.options.check_installed", lambda *_: None)
    words, seconds = COMMANDS[which]
    base = (*words, *BASE_OF_COMMAND.get(name, ()))
    out = once(base, lambda out: command(out, base))
    code, err = command(out, (*words, *seconds[name]))
    assert code == 2, err
    assert OTHER_RUN in err


# ---------------------------------------------------------------------------------------- what else tells results apart
def test_every_setting_of_the_page_is_computed_anew_or_moves_boxes_and_colours_alone() -> None:
    """And each of them stands in the lines that repeat what was seen."""
    seconds: dict[str, Any] = {
        "names": "dog", "model": "other", "method": "layer_cam", "compare": ("cam",), "resize": "pad",
        "scales": (1, 1.5), "windows": (2,), "flip": True, "templates": "name-only", "refine": ("guided",),
        "min_presence": 0.2, "threshold": 0.3, "max_boxes": 2, "split_peaks": 0.3,
        "min_score": 0.1, "opacity": 0.2, "masks": False, "masks_by": "grabcut", "exemplar_name": "dog",
        "exemplar_box": "0,0,9,9",
    }  # fmt: skip
    from_look = {"model", "method", "compare", "threshold"}  # the lines are told by the look
    assert seconds.keys() == {*KEYS}
    plain = Settings(names="cat\ndog", masks=True, exemplar_name="cat")

    def lines(settings: Settings) -> list[str]:
        seen = ("a.jpg", {"model": "mini"}, [({"method": "cam"}, 0.4)], "b.jpg")
        return [repeated(settings, *seen) for repeated in (python_lines, command_lines)]

    for name, value in seconds.items():
        other = replace(plain, **{name: value})
        assert (other.computed == plain.computed) == (name in LIVE), name
        if name not in from_look:
            assert lines(other)[0] != lines(plain)[0], name
        if name not in from_look | {"opacity"}:  # no option of the command
            assert lines(other)[1] != lines(plain)[1], name


def test_the_lines_of_the_page_say_the_servers_precision() -> None:
    for precision, said in (("fp32", None), ("bf16", "bf16")):
        [offer] = Service([Offer("mini")], "cpu", precision).offers.values()
        assert offer.arguments["precision"] == said
        lines = python_lines(Settings(names="cat"), "a.jpg", offer.arguments, [({"method": "cam"}, 0.4)])
        assert ("precision='bf16'" in lines) == (said is not None)
