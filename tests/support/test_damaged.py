"""A damaged file of each kind that libraries read is refused in one line, or skipped with one."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from cliploc.errors import CliplocError
from cliploc.evaluate.data import open_dataset, open_labelled
from cliploc.evaluate.tasks.evaluate import read_map
from cliploc.find.calibration import load_calibration, package_calibration
from cliploc.find.heads import read_config
from cliploc.find.learnt import load_learnt
from cliploc.images.reading import load
from cliploc.label.corrections import read_corrections
from cliploc.towers._weights import read_checkpoint
from tests.evaluate.data import folders, labelled


def written(save: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def corrected(path: Path) -> object:
    return read_corrections(path, {"a.jpg": (40, 30)}, ["cat"])


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
TENSORS = {"a": torch.arange(600.0)}
CVAT = '<annotations><image name="a.jpg" width="40" height="30"><box label="cat" xtl="1" ytl="2" xbr="9" ybr="8"/>'
FILES: dict[str, tuple[Callable[[], bytes], Callable[[Path], Any]]] = {
    "a.jpg": (lambda: written(lambda to: NOISE.save(to, "jpeg")), load),
    "a.png": (lambda: written(lambda to: NOISE.save(to, "png")), load),
    "w.safetensors": (lambda: save(TENSORS), read_checkpoint),
    "w.pt": (lambda: written(lambda to: torch.save(TENSORS, to)), read_checkpoint),
    "head.safetensors": (lambda: save(TENSORS), read_config),
    "learnt.safetensors": (lambda: save(TENSORS), load_learnt),
    "calibration.json": (lambda: json.dumps(package_calibration("mini").document()).encode(), load_calibration),
    "map.npy": (lambda: written(lambda to: np.save(to, np.ones((224, 224)))), lambda path: read_map(path, "exact")),
    "cvat.xml": (lambda: f"{CVAT}</image></annotations>".encode(), corrected),
    "coco.json": (lambda: json.dumps(folders.COCO).encode(), corrected),
    "data.yaml": (lambda: b"names: [cat, {a: b}, 'dog']", lambda path: open_dataset("yolo", path.parent)),
    "annotations/instances_val2017.json": (
        lambda: json.dumps(folders.COCO).encode(), lambda path: open_dataset("coco", path.parents[1])
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "noise"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_line(name: str, damage: str, tmp_path: Path) -> None:
    make, read = FILES[name]
    folders.coco(tmp_path)
    whole, path = make(), tmp_path / name
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else bytes(range(256)) * 4)
    with pytest.raises(CliplocError) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)


def test_a_cut_file_of_matlab_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    path = labelled.imagenet_seg(tmp_path) / "gtsegs_ijcv.mat"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:3000])
    with pytest.raises(CliplocError, match=r"^[^\n]*gtsegs_ijcv\.mat[^\n]*$"):
        open_labelled("imagenet_seg", tmp_path)
