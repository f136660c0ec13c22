"""What a policy is trained on and asked with, from NAVSIM's files."""
