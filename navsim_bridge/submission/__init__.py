"""Files for the NAVSIM leaderboards."""
