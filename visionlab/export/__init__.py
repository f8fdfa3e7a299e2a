"""Trained networks as files for other runtimes: what an exporter traces, checks and writes."""
