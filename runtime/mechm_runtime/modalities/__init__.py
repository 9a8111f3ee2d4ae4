"""Encoders of text, voice, face and scene, and the preprocessing of their inputs in numpy."""
