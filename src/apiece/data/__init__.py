"""Reading, checking and making data: COCO and JSONL samples, crowd scenes."""
