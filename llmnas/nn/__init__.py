"""Layers whose sizes are arguments: weights of the largest network, leading slices for the others."""
