"""A learned selector: predicts a plan's sub-scores from the frozen encoder's tokens, to choose among sampled plans."""
