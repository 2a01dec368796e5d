"""The rivals, each a Trainer of the same shape as the cooperative."""
