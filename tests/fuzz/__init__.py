"""Damaged files of every kind that cliploc reads: each is refused in one line, or read."""
