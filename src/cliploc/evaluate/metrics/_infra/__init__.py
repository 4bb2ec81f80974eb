"""Code that several metrics share: the protocol and registry, curves over all thresholds, the bootstrap."""
