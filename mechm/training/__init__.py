"""Trains the fusion, the Llama's adapter and the projector; calibrates them; `*_from_files` run whole trainings."""
