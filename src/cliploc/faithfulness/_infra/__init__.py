"""Helpers of the metrics."""
