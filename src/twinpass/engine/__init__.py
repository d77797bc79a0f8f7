"""Engines score requests under lanes and own the weights that training changes."""
