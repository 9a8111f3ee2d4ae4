"""Inference engines: load one part of a bundle and run it, with batching and caching of outputs."""
