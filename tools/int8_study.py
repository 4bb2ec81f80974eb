"""Would `mini`'s tower be faster in int8, and as good? For docs/studies/performance.md, "Engines".

OpenVINO computes the tower in float32, bfloat16 and int8. NNCF makes the int8 network: weights and activations get
their scales from 300 training pictures, none of them a tuning picture. Speeds are processor time by turns, one thread.
The boxes are those of the 118 tuning pictures (tools/choose_thresholds.py), by `cam` at its τ; no number is reported on
them.

    pip install 'cliploc[openvino]' nncf
    OMP_WAIT_POLICY=passive python tools/int8_study.py
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from PIL import Image
from torch import Tensor, nn

from cliploc.backbones._cnn import run_stages
from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.geometry import iou_matrix
from cliploc.localizer import Localizer

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "../shared/data/imagenet_one_per_class"
SYNSETS = ROOT / "../shared/data/ilsvrc_val_dev/synsets.csv"
CALIBRATION = 300  # pictures
ROUNDS = 7
SIDE = 224  # of the maps that boxes are taken from
TAU = 0.3


class Stages(nn.Module):
    """The stages up to the last, as one module: `[B, 3, H, W]` → the last one's output."""

    def __init__(self, stages: Sequence[nn.Module], wanted: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.wanted = wanted

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(run_stages(list(self.stages), x, self.wanted))


class Recorder:
    """Runs the tower as ever, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[nn.Module], Tensor, Sequence[int]]] = []

    def __call__(self, stages: Sequence[nn.Module], x: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        self.asked.append((stages, x, wanted))
        return run_stages(stages, x, wanted)


class Compiled:
    """Runs the tower by a network that OpenVINO compiled."""

    def __init__(self, network: Any, precision: str) -> None:
        settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
        self.network = openvino.Core().compile_model(network, "CPU", settings)

    def __call__(self, _: Sequence[nn.Module], x: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        results = self.network([x.float().numpy()], share_outputs=False)
        return [torch.from_numpy(results[number]) for number in range(len(wanted))]


def opened(wnid: str) -> Image.Image:
    with Image.open(PICTURES / f"{wnid}.jpg") as file:
        return file.convert("RGB")


def main() -> None:
    torch.set_num_threads(1)
    drawn = json.loads((ROOT / "tools/tuning_boxes.json").read_text())["boxes"]
    names = {row["wnid"]: row["synset_words"].split(", ")[0] for row in csv.DictReader(SYNSETS.open())}
    classes = sorted(set(names.values()))
    localizer = Localizer("mini", method="cam", min_presence=0)
    recorder = localizer.backbone.runner = Recorder()
    for wnid in [wnid for wnid in sorted(names) if wnid not in drawn][:CALIBRATION]:
        localizer(opened(wnid), ["cat"])
    stages, first, wanted = recorder.asked[0]
    pictures = [x.float().numpy() for _, x, _ in recorder.asked]
    with torch.no_grad():
        tower = Stages(stages, wanted).eval()
        plain = openvino.convert_model(tower, example_input=first, input=[-1, *first.shape[1:]])
    int8 = nncf.quantize(plain.clone(), nncf.Dataset(pictures), subset_size=CALIBRATION)
    runners = {"fp32": Compiled(plain, "f32"), "bf16": Compiled(plain, "bf16"), "int8": Compiled(int8, "bf16")}

    spent: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for batch in (1, 16):
            x = torch.from_numpy(np.concatenate(pictures[:batch]))
            for title, runner in runners.items():
                runner(stages, x, wanted)
                start = time.process_time()
                runner(stages, x, wanted)
                spent.setdefault((title, batch), []).append(1000 * (time.process_time() - start) / batch)

    right: dict[str, list[bool]] = {title: [] for title in runners}
    called: dict[str, list[str]] = {title: [] for title in runners}
    maps: dict[str, list[np.ndarray]] = {title: [] for title in runners}
    for title, runner in runners.items():
        localizer.backbone.runner = runner
        for wnid, record in drawn.items():
            image = opened(wnid)
            heat = localizer(image, [names[wnid]]).maps_over_picture((SIDE, SIDE))[0]
            boxes = boxes_from_maps(heat[None], BoxRule(TAU, "largest")).xyxy[:1]
            truths = np.array(record["xyxy"], float) * SIDE / np.array([image.width, image.height] * 2)
            right[title].append(bool(len(boxes)) and bool(iou_matrix(boxes, truths).max() >= 0.5))
            called[title].append(localizer.classify(image, classes)[0].name)
            maps[title].append(heat.ravel())
    columns = ("precision", "batch 1, ms a picture", "batch 16, ms", "located", "same first name", "least correlation")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for title in runners:
        one, sixteen = (float(np.median(spent[title, batch])) for batch in (1, 16))
        same = np.mean([a == b for a, b in zip(called["fp32"], called[title], strict=True)])
        least = min(np.corrcoef(a, b)[0, 1] for a, b in zip(maps["fp32"], maps[title], strict=True))
        print(f"| {title} | {one:.1f} | {sixteen:.1f} | {np.mean(right[title]):.3f} | {same:.3f} | {least:.4f} |")


if __name__ == "__main__":
    main()
