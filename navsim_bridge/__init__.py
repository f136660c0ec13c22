"""Everything that touches NAVSIM: file formats, PDM scoring, agents, submission."""
