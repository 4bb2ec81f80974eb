"""Heads for TS-CAM and LCTR, trained on a frozen tower from image-level labels only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cliploc.support.imports import on_first_use

if TYPE_CHECKING:
    from cliploc.evaluate.train.train_settings import TrainSettings
    from cliploc.evaluate.train.trainer import Epoch, Trained, train
    from cliploc.evaluate.train.training_set import LabelledPictures, read_csv, read_folder

__getattr__ = on_first_use(
    __name__,
    {
        "cliploc.evaluate.train.train_settings": ["TrainSettings"],
        "cliploc.evaluate.train.trainer": ["Epoch", "Trained", "train"],
        "cliploc.evaluate.train.training_set": ["LabelledPictures", "read_csv", "read_folder"],
    },
)
