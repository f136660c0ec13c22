"""Package definition; `make demo` and `make test` install it by themselves."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "dpvla/__init__.py").read_text()).group(1)

# A dm_control reads the fields of the mujoco of its day: 1.0.50 those of 3.17, and its suite does not run with 4.0.
# It and ogbench need labmaze, of which there are wheels up to Python 3.12.
STATE = ["mujoco>=3.17,<4", "ogbench>=1.2", "dm_control>=1.0.50"]
RAY = ["ray>=2.52"]  # below it a web page could start jobs (CVE-2025-62593)
NATIVE = ["numba>=0.60"]
LEROBOT = ["pyarrow>=18"]
DEEPSPEED = ["deepspeed>=0.19", "einops"]  # einops: imported by every version, required by some

setup(
    name="dpvla",
    version=VERSION,
    description="Pretrain and DIPOLE-fine-tune an end-to-end driving diffusion policy on NAVSIM",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The dpvla authors",
    keywords="autonomous driving, NAVSIM, diffusion policy, offline reinforcement learning, DIPOLE",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["dpvla*", "navsim_bridge*"]), "dpvla_tools", "dpvla_configs"],
    package_dir={"dpvla_tools": "tools", "dpvla_configs": "configs"},
    package_data={
        "dpvla": ["py.typed"],
        "dpvla_configs": ["*.yaml", "*/*.yaml"],
        "dpvla_devkit": ["config/agent/*.yaml"],
        "navsim_bridge": ["doctor/scenes/*.npz", "py.typed"],
    },
    entry_points={"console_scripts": ["dpvla = dpvla_tools.__main__:main"]},
    python_requires=">=3.10",
    install_requires=[  # each at its lower bound is tried by `make test-lowest`
        "accelerate>=1.6",
        "diffusers>=0.36",
        "tyro>=1.0.14",  # below it an option without a value is named as a Python tuple
        "matplotlib>=3.9",
        "numpy>=2.0.1",
        "opencv-python-headless>=4.12",  # below it reading an image could overwrite memory (CVE-2025-53644)
        "pandas>=2.2.2",
        "peft>=0.18",
        "pillow>=12.2",  # below it reading an image could write out of bounds (CVE-2026-25990, CVE-2026-42311)
        "psutil>=5.9",
        "pyogrio>=0.9",
        "pyproj>=3.6",
        "pyyaml>=6.0.1",
        "safetensors>=0.8",
        "scipy>=1.13",
        "shapely>=2.0.4",
        "tensorboard>=2.18",
        "timm>=1.0.26",  # below it a checkpoint's path could run code: it unpickled without weights_only
        "tokenizers>=0.23.1",
        "torch>=2.10",  # below it torch.load(weights_only=True) could run code (CVE-2025-32434, CVE-2026-24747)
        "torchvision>=0.25",
        "tqdm>=4.66.3",  # below it an option of its command line ran code (CVE-2024-34062)
        "transformers>=5.17",
    ],
    extras_require={
        "dev": [
            *NATIVE,
            *STATE,
            *RAY,
            *DEEPSPEED,
            *LEROBOT,
            "hypothesis>=6.100",
            "mypy>=1.13",
            "pandas-stubs",
            "pytest>=8",
            "pytest-timeout>=2.3.1",
            "pytest-xdist>=3.6.1",
            "ruff>=0.8",
            "setuptools>=68",
            "types-PyYAML",
            "types-tqdm",
        ],
        "deepspeed": DEEPSPEED,
        "lerobot": LEROBOT,
        "native": NATIVE,
        "ray": RAY,
        "state": STATE,
    },
)
