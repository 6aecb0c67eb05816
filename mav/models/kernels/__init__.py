"""Faster ways to compute a layer on some devices; the networks call them through `dispatch` alone."""
