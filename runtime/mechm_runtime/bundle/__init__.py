"""Bundles on disk: the manifest, opening and checking one, finding installed ones, signatures."""
