"""What approximations cost and save, measured on a task's own batch."""
