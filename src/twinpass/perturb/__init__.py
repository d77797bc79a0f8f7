"""Noise as an addressable function, and what is done with it to weights."""
