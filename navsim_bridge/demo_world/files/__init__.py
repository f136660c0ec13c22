"""The demo world in NAVSIM's file formats."""
