"""Every file format of NAVSIM and nuPlan, read safely."""
