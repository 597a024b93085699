"""Comparisons with independent engines (PyTorch, transformers, llama.cpp): not run by `make test`."""
