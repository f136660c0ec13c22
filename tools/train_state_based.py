"""Train and evaluate an agent on an OGBench or ExORL task.

python tools/train_state_based.py --env cube-single-play-singletask-task2-v0 --agent dipole --seed 0 --out runs/cube
python tools/train_state_based.py --env walker-walk --agent fql --seeds 0 1 2 --data data/exorl --out runs/walker
python tools/train_state_based.py --config configs/state_based/protocol_cpu.yaml --env cube-single-play-singletask-v0 \
    --data data/ogbench --out runs/cube_small                                 # scaled down, for a machine without a GPU

Leaves OUT/result.json. The same command goes on where it was stopped.
"""

from __future__ import annotations

from dpvla.cli import command
from dpvla.state_based.running.config import StateBasedConfig


@command(StateBasedConfig, __doc__)
def main(config: StateBasedConfig) -> None:
    """Train, evaluate, and say what came out."""
    from dpvla.state_based.running.training_run import train_state_based

    result = train_state_based(config)
    metric = "success" if "success" in result else "return"
    print(
        f"{config.out}/result.json: {metric} {result[metric]:.4g} ± {result['std']:.2g} after {result['steps']} steps"
    )
    for departure in result["deviations_from_the_paper"]:
        print(f"  not as in the paper: {departure}")


if __name__ == "__main__":
    main()
