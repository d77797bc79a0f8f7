"""The radix KV cache: which tokens' keys and values are held, under which weights, and where."""
