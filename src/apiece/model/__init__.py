"""The model side: loading, the embedded default, coordinate logits, and the shared prefix."""
