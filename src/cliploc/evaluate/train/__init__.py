"""Heads for TS-CAM and LCTR, trained on a frozen tower from image-level labels only."""
