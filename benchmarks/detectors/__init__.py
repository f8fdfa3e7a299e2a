"""Whole detectors: speed, memory, and where the time goes."""
