"""A remote source of FiftyOne's model zoo; the model itself is `cliploc.label.fiftyone`."""

from cliploc.label.fiftyone import download_model, load_model

__all__ = ["download_model", "load_model"]
