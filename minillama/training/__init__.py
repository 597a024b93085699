"""Training: losses on top of the model, and in time the loop that every stage shares."""
