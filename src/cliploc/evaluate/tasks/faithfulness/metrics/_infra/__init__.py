"""Code that several faithfulness metrics share: the protocol and registry, orders of pixels, fills, scores."""
