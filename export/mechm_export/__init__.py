"""From trained weights to a verified bundle that `mechm_runtime` serves."""
