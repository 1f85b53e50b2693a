"""Rewrites of the float model that keep its function and make it easier to round, one formula a file.

Scales: an activation is divided by them, and the weights that it is multiplied with make up for it. Rotations: an
activation is multiplied with an orthogonal matrix, and the weights with its inverse. In all shapes here, K counts
channels: of an activation X [n, K], and with it the rows of every weight [K, C].
"""
