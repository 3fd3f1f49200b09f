"""Scoring detections: official COCO AP, F1 at IoU 0.5, the ceiling of the codec, and one metrics file a run."""
