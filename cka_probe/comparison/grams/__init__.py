"""Compute the Gram matrix of a layer inside its hook."""
