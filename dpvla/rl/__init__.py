"""Reinforcement learning of the action head: roll-outs, their buffer, and the fine-tuning stage."""
