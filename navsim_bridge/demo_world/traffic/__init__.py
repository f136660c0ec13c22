"""Who drives and walks in the demo world."""
