"""What a model is worth: evaluate one, compare two."""
