"""Fetch bundles: over HTTP, from OCI registries, out of archives, or from a folder of this machine."""
