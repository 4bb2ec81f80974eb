"""Heads for TS-CAM and LCTR, trained on a frozen tower from image-level labels only."""

from __future__ import annotations

from cliploc.training.heads import HeadConfig, LctrHead, SemanticHead, TsCamHead, load_head, read_config
from cliploc.training.pictures import LabelledPictures, read_csv, read_folder
from cliploc.training.train import Epoch, Trained, TrainSettings, process_device, train

__all__ = [
    "Epoch",
    "HeadConfig",
    "LabelledPictures",
    "LctrHead",
    "SemanticHead",
    "TrainSettings",
    "Trained",
    "TsCamHead",
    "load_head",
    "process_device",
    "read_config",
    "read_csv",
    "read_folder",
    "train",
]
