"""Scales for the channels of activations, one formula a file.

An activation is divided by them, and the weights that it is multiplied with make up for it. In all shapes here, K
counts channels: of an activation X [n, K], and with it the rows of every weight [K, C].
"""
