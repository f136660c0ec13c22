"""OGBench and ExORL: DIPOLE and its baselines on small networks, one file per agent."""
