"""PDM-Closed, the rule-based planner whose plan and centreline the PDM score is measured against."""
