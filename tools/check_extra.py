"""Uses the feature of one extra on a bundled photograph: `python tools/check_extra.py EXTRA`, in a folder of its own.

tools/check_extras.sh runs it where cliploc is installed with this extra alone.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import cliploc
from cliploc.cli import main

sys.path.append(str(Path(__file__).parents[1]))  # for the datasets that tests make
PHOTOS = Path(cliploc.__file__).parent / "demo_photos"
CAT = PHOTOS / "cat.jpg"
OUT = Path("out")


def run(*words: object) -> None:
    code = main([str(word) for word in words])
    assert code == 0, f"exit code {code}: {words}"


def pictures() -> Path:
    """A folder of two pictures with boxes, and of their names."""
    root = OUT / "pictures"
    root.mkdir(parents=True, exist_ok=True)
    with (root / "boxes.csv").open("w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["path", "label", "x0", "y0", "x1", "y1"])
        for name in ("cat", "bee"):
            (root / f"{name}.jpg").write_bytes((PHOTOS / f"{name}.jpg").read_bytes())
            write.writerow([f"{name}.jpg", name, 20, 20, 300, 300])
    (OUT / "labels.txt").write_text("cat\nbee\n")
    return root


def annotate(*more: object) -> None:
    run("annotate", pictures(), "--labels", OUT / "labels.txt", "--method", "cam", "--out", OUT / "drafts", *more)


def quantus() -> None:
    from quantus import Sparseness

    from cliploc.evaluate.tasks.faithfulness.quantus import QuantusModel, explain

    model = QuantusModel(cliploc.Localizer("mini", resize="squash"), ["cat", "dog"])
    x = model.pictures([Image.open(CAT)])
    maps = explain(model, x, np.array([0]))
    [score] = Sparseness(disable_warnings=True)(model=model, x_batch=x, y_batch=np.array([0]), a_batch=maps)
    assert 0 < score < 1


def autodistill() -> None:
    from autodistill.detection import CaptionOntology

    from cliploc.label.autodistill import Cliploc

    assert len(Cliploc(CaptionOntology({"cat|kitten": "cat"})).predict(str(CAT)))


def fiftyone() -> None:
    from cliploc.label.fiftyone import OUTPUTS, CliplocConfig, CliplocModel

    labels = CliplocModel(CliplocConfig(["cat"], OUTPUTS)).predict(np.asarray(Image.open(CAT)))
    assert labels["detections"].detections


def heic() -> None:
    import pillow_heif

    OUT.mkdir()
    pillow_heif.from_pillow(Image.open(CAT)).save(OUT / "cat.heic")
    run("localize", OUT / "cat.heic", "-p", "cat")


def refine() -> None:
    run("localize", CAT, "-p", "cat", "--model", "mini-vit", "--method", "maskclip", "--refine", "lposs_plus")


def sam() -> None:
    import transformers

    from cliploc.towers.sam import SamMasks

    square = {"height": 64, "width": 64}
    config = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(
            hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=8,
            mlp_dim=32, window_size=0, global_attn_indexes=[0], num_pos_feats=8,
        ),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(
            image_size=64, patch_size=8, hidden_size=16, mask_input_channels=4
        ),
        mask_decoder_config=transformers.SamMaskDecoderConfig(
            hidden_size=16, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_depth=2,
            iou_head_hidden_dim=16,
        ),
    )  # fmt: skip
    images = transformers.SamImageProcessor(
        size={"longest_edge": 64},
        pad_size=square,
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    transformers.SamModel(config).save_pretrained(OUT)
    transformers.SamProcessor(images).save_pretrained(OUT)
    found = cliploc.Localizer()(CAT, ["cat"])
    assert SamMasks(OUT)(found).shape == (len(found.boxes), *found.heatmaps.shape[1:])


def bench() -> None:
    root = pictures()
    run("benchmark", "boxes", "--dataset", "folder", "--root", root, "--method", "cam", "--out", OUT / "benchmark")
    run("report", OUT / "benchmark")


def ray() -> None:
    annotate("--engine", "ray")


def segmentation() -> None:
    from tests.evaluate.data.labelled import imagenet_seg

    options = ("--dataset", "imagenet_seg", "--root", imagenet_seg(OUT / "seg"), "--method", "cam")
    run("benchmark", "segmentation", *options, "--out", OUT / "benchmark")


def regions() -> None:
    run("segment", CAT, "-p", "cat", "-p", "sofa", "--regions", "colour", "--out", OUT / "segmented")


def train() -> None:
    for number, name in enumerate(("cat", "bee", "cat")):
        (OUT / "classes" / name).mkdir(parents=True, exist_ok=True)
        (OUT / "classes" / name / f"{number}.jpg").write_bytes((PHOTOS / f"{name}.jpg").read_bytes())
    options = ("--root", OUT / "classes", "--model", "mini-vit", "--epochs", 1, "--held-out", 0)
    run("train", "lctr", *options, "--out", OUT / "head.safetensors")


def web() -> None:
    annotate()
    for words in (["serve", "--model", "mini"], ["review", str(OUT / "drafts")], ["label-studio"]):
        command = [sys.executable, "-m", "cliploc", *words, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                address = server.stdout.readline().strip()
                with urllib.request.urlopen(address + ("/health" if words == ["label-studio"] else "/")) as answer:
                    assert answer.status == 200, words
            finally:
                server.terminate()


CHECKS: dict[str, Callable[[], None]] = {
    one.__name__: one
    for one in (
        *(autodistill, fiftyone, heic, refine, regions, sam, bench),
        *(quantus, ray, segmentation, train, web),
    )
}

if __name__ == "__main__":
    if sys.argv[1:] in ([], ["--help"]):
        print(f"{__doc__}\nEXTRA is one of {', '.join(CHECKS)}")
        sys.exit()
    CHECKS[sys.argv[1]]()
