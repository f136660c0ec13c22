"""The PDM score (NAVSIM v1) and EPDMS (v2): exact, batched over scenes and candidate plans, CPU and CUDA alike.

batch = SceneBatch.from_scenes(scenes)          # list of MetricScene
scores = score_plans(batch, plans).score        # plans (scene, candidate, 8, 3) -> (scene, candidate)

EPDMS: ``epdms_scores(epdms_terms(EPDMSBatch.from_scenes(scenes), plans), human_filter).score``, see ``epdms``.
"""

from navsim_bridge.pdm.epdms import EPDMSTerms, epdms_scores, epdms_terms
from navsim_bridge.pdm.epdms_scene import EPDMSBatch
from navsim_bridge.pdm.metric_scene import EPDMSInputs, MetricScene
from navsim_bridge.pdm.scene import SceneBatch
from navsim_bridge.pdm.score import SUB_SCORES, PDMScores, score_plans, simulate_plans
from navsim_bridge.pdm.simulate import ego_state_as_read_back
from navsim_bridge.pdm.terms.comfort import two_frame_extended_comfort

__all__ = [
    "SUB_SCORES",
    "EPDMSBatch",
    "EPDMSInputs",
    "EPDMSTerms",
    "MetricScene",
    "PDMScores",
    "SceneBatch",
    "ego_state_as_read_back",
    "epdms_scores",
    "epdms_terms",
    "score_plans",
    "simulate_plans",
    "two_frame_extended_comfort",
]
