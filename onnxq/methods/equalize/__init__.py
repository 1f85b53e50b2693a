"""Function-preserving rewrites of the float model that make it easier to round: arrays in, arrays out."""
