"""Road networks and what stands along them."""
