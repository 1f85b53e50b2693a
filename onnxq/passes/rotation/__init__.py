"""Rotations of a float model: where they can go, where they help, and how they are folded into the weights."""
