"""Package definition; `make demo` and `make test` install it by themselves."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "dpvla/__init__.py").read_text()).group(1)

STATE = ["mujoco>=3.17,<4", "ogbench>=1.2", "dm_control>=1.0.40"]  # dm_control's suite does not run with mujoco 4.0
RAY = ["ray>=2.40"]
NATIVE = ["numba>=0.60"]
DEEPSPEED = ["deepspeed>=0.19", "einops"]  # einops: imported by every version, required by some

setup(
    name="dpvla",
    version=VERSION,
    description="Pretrain and DIPOLE-fine-tune an end-to-end driving diffusion policy on NAVSIM",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["dpvla*", "navsim_bridge*"]),
    package_data={"navsim_bridge": ["doctor/scenes/*.npz"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        "accelerate>=1.6",
        "diffusers>=0.35",
        "tyro>=0.9.10",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "opencv-python-headless>=4.9",
        "pandas>=2.1",
        "peft>=0.15",
        "pillow>=10.3",
        "psutil>=5.9",
        "pyogrio>=0.9",
        "pyproj>=3.6",
        "pyyaml>=6",
        "safetensors>=0.4.5",
        "scipy>=1.11",
        "shapely>=2.0.4",
        "tensorboard>=2.16",
        "timm>=1.0.12",
        "tokenizers>=0.21",
        "torch>=2.5",
        "torchvision>=0.20",
        "tqdm>=4.66",
        "transformers>=5.17",
    ],
    extras_require={
        "dev": [
            *NATIVE,
            *STATE,
            *RAY,
            *DEEPSPEED,
            "hypothesis>=6.100",
            "mypy>=1.13",
            "pandas-stubs",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "ruff>=0.8",
            "types-PyYAML",
            "types-tqdm",
        ],
        "deepspeed": DEEPSPEED,
        "native": NATIVE,
        "ray": RAY,
        "state": STATE,
    },
)
