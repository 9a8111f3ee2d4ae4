"""Packing and inspecting finished bundles. Nothing here needs torch or an inference engine."""
