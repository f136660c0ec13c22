"""Data of the state-based track: OGBench and ExORL files, their rewards, and how to make small ones here."""
