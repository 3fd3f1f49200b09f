"""Two or more runs on the same images: every figure with its difference, an interval and a plain verdict."""
