"""Readers of segmentation sets; see `cliploc.evaluate.data.open_labelled`."""
