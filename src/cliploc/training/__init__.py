"""Heads for TS-CAM and LCTR, trained on a frozen tower from image-level labels only."""

from __future__ import annotations

from cliploc.training.labelled import LabelledPictures, read_csv, read_folder
from cliploc.training.train import Epoch, Trained, TrainSettings, process_device, train

__all__ = [
    "Epoch",
    "LabelledPictures",
    "TrainSettings",
    "Trained",
    "process_device",
    "read_csv",
    "read_folder",
    "train",
]
