"""What the cameras see in the demo world."""
