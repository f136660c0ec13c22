"""The comparison of RL algorithms on driving: its runs, its tables and figures, and what they are worth."""
