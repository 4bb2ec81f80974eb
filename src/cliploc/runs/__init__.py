"""Runs that can be stopped and go on: what was computed and what a person saved, in one file."""
