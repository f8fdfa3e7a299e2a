"""What a model is worth: COCO metrics, pictures of its detections, and the report of a run."""
