"""A remote source of FiftyOne's model zoo; the model itself is `cliploc.integrations.fiftyone`."""

from cliploc.integrations.fiftyone import download_model, load_model

__all__ = ["download_model", "load_model"]
