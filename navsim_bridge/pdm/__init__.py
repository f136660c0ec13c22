"""The PDM score (NAVSIM v1): exact, batched over scenes and candidate plans, CPU and CUDA alike.

batch = SceneBatch.from_scenes(scenes)          # list of MetricScene
scores = score_plans(batch, plans).score        # plans (scene, candidate, 8, 3) -> (scene, candidate)
reasons = explain(batch, plans)                 # what cost the points: reasons[scene][candidate].text
"""

from navsim_bridge.pdm.explain import Explanation, Loss, explain
from navsim_bridge.pdm.metric_scene import MetricScene
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.score import SUB_SCORES, PDMScores, score_plans, simulate_plans
from navsim_bridge.pdm.simulate import ego_state_as_read_back, reference_from_plan

__all__ = [
    "SUB_SCORES",
    "Explanation",
    "Loss",
    "MetricScene",
    "PDMScores",
    "SceneBatch",
    "ego_state_as_read_back",
    "explain",
    "reference_from_plan",
    "score_plans",
    "simulate_plans",
]
