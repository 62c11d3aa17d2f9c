"""Embedders that come with simpe, one module a kind of sample."""
