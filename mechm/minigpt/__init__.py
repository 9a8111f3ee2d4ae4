"""MiniGPT-v2 and its kin (MER-MCE, Emotion-LLaMA): importing their checkpoints, and asking them about a picture."""
