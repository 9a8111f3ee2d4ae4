"""Writing bundles (`write`) and verifying them (`verify`), with the manifest, calibration inputs and 16-bit graphs."""
