"""Packed batches of requests under lanes: what is shared runs once, then each lane runs the rest."""
