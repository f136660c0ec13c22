"""RL algorithms for the driving policy: one file each behind the contract of ``algorithm``."""
