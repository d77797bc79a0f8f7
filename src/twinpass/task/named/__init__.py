"""Public tasks by their names, a file each: what their files look like, and what a row becomes."""
