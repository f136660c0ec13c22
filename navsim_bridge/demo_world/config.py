"""Settings of the demo world and the four locations it is set in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dpvla.config import Count, NotNegative, Range, Size, Whole, Workers, check
from navsim_bridge.files.frames import ALL_CAMERAS
from navsim_bridge.files.roots import DEMO_WORLD
from navsim_bridge.splits.scene_filter import SceneFilter

GENERATOR_VERSION = 3
"""Raised whenever the same settings would give other files, so that an old world is not taken for a new one."""

HISTORY_FRAMES, FUTURE_FRAMES = SceneFilter.num_history_frames, SceneFilter.num_future_frames
SCENE_SECONDS = (HISTORY_FRAMES + FUTURE_FRAMES) / 2


@dataclass(frozen=True)
class Location:
    """A nuPlan location: its map version and coordinate system, and how the demo town stands in it."""

    index: int
    name: str
    version: str
    epsg: int
    origin: tuple[float, float]  # UTM easting and northing of the town's center [m]
    rotation: float  # of the street grid [rad]
    vehicle: int


LOCATIONS = (
    Location(0, "us-ma-boston", "9.12.1817", 32619, (331000.0, 4690400.0), 0.35, 35),
    Location(1, "us-pa-pittsburgh-hazelwood", "9.17.1937", 32617, (588000.0, 4473500.0), -0.6, 28),
    Location(2, "us-nv-las-vegas-strip", "9.15.1915", 32611, (664900.0, 3998700.0), 0.05, 47),
    Location(3, "sg-one-north", "9.17.1964", 32648, (365500.0, 143900.0), 1.1, 53),
)


@dataclass(frozen=True)
class DemoWorldConfig:
    """What to generate and where. Two runs with equal settings (workers aside) write equal bytes."""

    root: str = str(DEMO_WORLD)  # folder that receives maps/, navsim_logs/, sensor_blobs/ and splits/
    seed: Whole = 0  # everything random derives from it
    num_train_logs: Count = 136  # logs in navsim_logs/trainval
    num_test_logs: Count = 44  # logs in navsim_logs/test
    num_validation_logs: Whole | None = None  # of split navval, in navsim_logs/trainval (none: 1 for 5 training logs)
    log_seconds: Annotated[float, Range(least=SCENE_SECONDS, most=7200)] = 50.0  # recorded length of each log [s]
    frame_interval: Count = 4  # frames from one scene to the next; near ones are alike and teach less
    image_width: Annotated[Size, Range(least=16)] = 480  # pixels; 1920 is full size
    image_height: Annotated[Size, Range(least=9)] = 270  # pixels; 1080 is full size
    jpeg_quality: Annotated[int, Range(least=1, most=100)] = 88  # 1 to 100
    cameras: tuple[str, ...] = ("CAM_F0", "CAM_L0", "CAM_R0")  # cameras to render; the log lists all eight
    render_all_frames: bool = False  # also render frames that are no scene's current frame
    traffic: NotNegative = 1.0  # multiplies the number of moving vehicles
    metric_cache: bool = True  # build metric caches and the filtered splits; False leaves the unfiltered ones
    workers: Workers = 0  # processes; 0 means one per available core
    overwrite: bool = False  # delete a world made with other settings first
    quiet: bool = False  # no progress bar

    def __post_init__(self) -> None:
        check(self, "demo world")
        unknown = sorted(set(self.cameras) - set(ALL_CAMERAS))
        if unknown:
            raise ValueError(f"cameras: unknown {', '.join(unknown)}; choose from {', '.join(ALL_CAMERAS)}")

    @property
    def validation_logs(self) -> int:
        """Logs of the validation split; 0: there is none."""
        return self.num_train_logs // 5 if self.num_validation_logs is None else self.num_validation_logs

    @property
    def num_frames(self) -> int:
        """Recorded frames per log at 2 Hz."""
        return round(self.log_seconds * 2)

    def rendered_frames(self) -> range:
        """Indices of the frames whose images are written: every scene's current frame, or all."""
        return range(self.num_frames) if self.render_all_frames else self.scene_frames()

    def scene_frames(self) -> range:
        """Indices of the frames that are a scene's current frame."""
        return range(HISTORY_FRAMES - 1, self.num_frames - FUTURE_FRAMES, self.frame_interval)

    def identity(self) -> dict[str, object]:
        """The settings that determine the files, for the completion marker."""
        aside = {"root", "workers", "overwrite", "quiet", "metric_cache"}
        values = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in aside}
        values |= {"num_validation_logs": self.validation_logs, "cameras": sorted(self.cameras)}
        return {**values, "generator_version": GENERATOR_VERSION}
