"""Heads for TS-CAM and LCTR, trained on a frozen tower from image-level labels only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cliploc.support.imports import on_first_use

if TYPE_CHECKING:
    from cliploc.training.train_settings import TrainSettings
    from cliploc.training.trainer import Epoch, Trained, train
    from cliploc.training.training_set import LabelledPictures, read_csv, read_folder

__getattr__ = on_first_use(
    __name__,
    {
        "cliploc.training.train_settings": ["TrainSettings"],
        "cliploc.training.trainer": ["Epoch", "Trained", "train"],
        "cliploc.training.training_set": ["LabelledPictures", "read_csv", "read_folder"],
    },
)
