"""Networks of the agents, stacked over seeds."""
