"""PDM-Closed, the rule-based planner whose plan and centerline the PDM score is measured against."""
