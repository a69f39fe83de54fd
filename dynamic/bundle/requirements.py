"""What a bundle needs of an installation for any input, checked before the first one comes."""

import logging

from dynamic.bundle.contract import DeployedBundle
from dynamic.engines.engine_factory import check_installed_engine
from dynamic.policies.errors import DynamicError, EngineError

logger = logging.getLogger("dynamic")


def check_packages(bundle: DeployedBundle) -> None:
    """Check the packages without which some input could not be answered.

    A small picture may need no resize, so that a missing Pillow would show only once another picture comes.

    Args:
        bundle: The bundle.

    Raises:
        DynamicError: A package is missing. The message says how to install it.
    """
    if bundle.preprocess is not None:
        bundle.preprocess.check_packages()


def check_needs(bundle: DeployedBundle) -> None:
    """`check_packages`, and a warning where the engine of the calibration is missing: another may be asked for.

    Args:
        bundle: The bundle.

    Raises:
        DynamicError: A package is missing.
    """
    check_packages(bundle)
    try:
        check_installed_engine(bundle.engine)
    except EngineError as error:
        logger.warning("%s. Answers of other engines are not certified for %s", error, bundle.folder)


def unmet_needs(bundle: DeployedBundle) -> tuple[str, ...]:
    """What this installation and this processor lack for a bundle.

    Args:
        bundle: The bundle.

    Returns:
        A line with the remedy for each thing that is missing.
    """
    lines = []
    try:
        check_packages(bundle)
    except DynamicError as error:
        lines.append(str(error))
    try:
        bundle.open_unchecked().close()  # asks the processor for the precision
    except DynamicError as error:
        lines.append(str(error))
    return tuple(lines)
