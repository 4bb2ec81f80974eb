"""Overlays, sheets and pages of results; no model is loaded."""
