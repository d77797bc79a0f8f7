"""What a user would pick instead, run beside twinpass on the same model, data and machine."""
