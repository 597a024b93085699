"""Comparisons with independent engines (PyTorch, transformers, llama.cpp): run by the peers step, not by `make test`."""
