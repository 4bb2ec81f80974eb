"""Readers of segmentation sets, one file for each published layout; see `cliploc.evaluate.data.open_labelled`."""
