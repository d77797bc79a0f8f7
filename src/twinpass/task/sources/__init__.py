"""Where rows come from: files of several kinds, Hugging Face datasets, standard input, Python objects."""
