"""One analysis from decoding and encoding to results, within a deadline."""
