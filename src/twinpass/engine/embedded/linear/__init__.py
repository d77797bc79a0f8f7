"""What modules with trainable weights compute when several lanes run together."""
