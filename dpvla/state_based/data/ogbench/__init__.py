"""OGBench: its files, downloaded or made here with the package's scripted oracles."""
