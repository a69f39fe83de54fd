"""What stages of a bundle cost on this machine, with energies where the power of the device is given."""

import math
from collections.abc import Sequence

from dynamic.bundle.version_files import VersionFiles
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies.costs import Costs
from dynamic.policies.errors import SettingError
from dynamic.profiling.stage_profile import profile


def check_powers(active_mw: float | None, idle_mw: float | None) -> None:
    """Check powers before minutes are spent.

    Args:
        active_mw: Power that inference adds to `idle_mw`, in milliwatts. None: it is not given.
        idle_mw: Power of the idle device, in milliwatts. None: it is not given.

    Raises:
        SettingError: A power is no positive number, or `idle_mw` is given alone.
    """
    for name, value in (("active_mw", active_mw), ("idle_mw", idle_mw)):
        if value is not None and not 0 < value < math.inf:
            raise SettingError(f"{name}={value!r} must be a positive number of milliwatts")
    if idle_mw is not None and active_mw is None:
        raise SettingError(
            f"idle_mw={idle_mw!r} says nothing of an inference without active_mw: give both, active_mw on top of "
            "idle_mw, or neither"
        )


def profile_here(
    engine: CascadeEngine,
    files: VersionFiles,
    batch: Sequence[int] | None,
    seconds: float,
    *,
    active_mw: float | None,
    idle_mw: float | None,
    progress: bool | None,
) -> Costs:
    """Measure what every stage costs. See `Bundle.profile`.

    Args:
        engine: The engine.
        files: The files of the bundle, for the processes that measure memory.
        batch: Batch sizes `[K]`, rising. None: the usual ones.
        seconds: How long each batch size is measured in each way.
        active_mw: Power that inference adds to `idle_mw`, in milliwatts. None: energies are not computed.
        idle_mw: Power of the idle device, in milliwatts. None: it is not given.
        progress: Show a progress bar on stderr. None: where that is a terminal.

    Returns:
        The costs.

    Raises:
        SettingError: Batch sizes do not rise.
        EngineError: The engine fails.
    """
    with files.whole_folder() as folder:
        costs = profile(engine, folder, batch, seconds, progress=progress)
    return costs if active_mw is None else costs.powered(active_mw, idle_mw)
