"""Learning rate schedule."""

from __future__ import annotations


def learning_rate(step: int, n_steps: int, warmup: float) -> float:
    """Return the rate as a share of its peak: linear warm-up over the first share `warmup` of steps, linear decay."""
    done = step / max(n_steps, 1)
    return min(done / warmup, 1.0) if done < warmup else max(0.02, (1 - done) / (1 - warmup))
