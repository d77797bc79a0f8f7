"""Products with perturbed weights that are formed where they are multiplied."""
