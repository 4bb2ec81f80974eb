"""One training in a process of its own, for tests that kill it."""

import os
import signal
from pathlib import Path

import torch

from cliploc.evaluate.train.train_settings import TrainSettings
from cliploc.evaluate.train.trainer import read_folder, train
from cliploc.support.reporter import Reporter
from tests.tiny import tower


class Fuse:
    """Kills its process, as `kill -9` does, when pictures of a phase are reported for the n-th time."""

    def __init__(self, label: str, at: int) -> None:
        self._label, self._left, self._now = label, at, ""

    def phase(self, label: str) -> None:
        self._now = label

    def images(self, _: int) -> None:
        if self._label and self._now.startswith(self._label):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def settings(method: str) -> TrainSettings:
    return TrainSettings(
        method=method, kind="open", epochs=4, batch_size=8, lr=0.01, held_out=0.25, augmentations=1, patience=4
    )


def main(root: str, out: str, method: str, label: str = "", at: str = "0") -> None:
    torch.set_num_threads(1)
    fuse = Fuse(label, int(at))
    reporter = Reporter(phase=fuse.phase, images=fuse.images)
    train(tower("vit", (5, 6)), read_folder(root), Path(out), settings(method), reporter=reporter)
