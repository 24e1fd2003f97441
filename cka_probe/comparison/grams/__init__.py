"""The Gram matrix of a layer, taken inside its hook."""
