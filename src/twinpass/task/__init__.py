"""Rows of a file become tokenised examples."""
