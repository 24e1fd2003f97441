"""Figures of the paper's theory and of this package's measurements: one script for each picture."""
