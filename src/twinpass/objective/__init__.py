"""Objectives turn examples into requests, and their scores into one number."""
