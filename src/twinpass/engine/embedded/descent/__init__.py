"""The exact gradient of what is trained, and steps along it."""
