"""MiniGPT-v2 and its variants MER-MCE and Emotion-LLaMA: imports their checkpoints and asks them about pictures."""
