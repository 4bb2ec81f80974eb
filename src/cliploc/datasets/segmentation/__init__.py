"""Readers of segmentation sets, one file for each published layout; see `cliploc.datasets.open_labelled`."""
