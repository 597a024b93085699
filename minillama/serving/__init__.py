"""`minillama serve`: a model behind an HTTP endpoint, its requests computed together."""
