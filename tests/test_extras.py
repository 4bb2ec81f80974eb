"""Without the packages of an extra, the command that needs them says in one line what to install."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

from cliploc.support.imports import PACKAGES
from tests.commands import CAT, python

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
    "regions": "tests/find/segmentation/test_regions.py::test_what_cannot_be_is_one_line",
    "sam": "tests/towers/test_sam.py",
    "segmentation": "tests/evaluate/data/test_labelled.py::test_without_h5py_one_line_says_so",
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
