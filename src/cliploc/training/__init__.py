"""Heads for TS-CAM and LCTR, trained on a frozen tower from image-level labels only."""

from cliploc.training.trainer import Epoch, Trained, TrainSettings, process_device, train
from cliploc.training.training_set import LabelledPictures, read_csv, read_folder
