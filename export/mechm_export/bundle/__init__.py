"""Writing and verifying bundles."""
