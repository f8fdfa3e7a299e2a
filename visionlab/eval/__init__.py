"""Measuring models: COCO metrics, probes, pictures of detections, and reports of runs."""
