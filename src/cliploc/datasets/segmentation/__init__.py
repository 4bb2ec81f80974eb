"""Readers of segmentation sets, one file a published layout; see `cliploc.datasets.open_labelled`."""
