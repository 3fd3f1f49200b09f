"""What fails, how often and where, and which explanation the probes support; no torch but where a model is run."""
