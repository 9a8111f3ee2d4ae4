"""Training, calibration and checkpoints."""
