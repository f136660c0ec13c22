"""What a run shows people: pictures and tables."""
