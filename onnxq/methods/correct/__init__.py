"""Corrections from the statistics of a layer, in closed form: of a weight before it is rounded, or after."""
