"""What both engines know of a model: parts, trainable weights, adapters, loading, identity, device."""
