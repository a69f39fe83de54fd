"""What a calibration is valid for: this cascade, this preprocessing, this engine, this precision."""

import hashlib
import json
from pathlib import Path
from typing import Any


def fingerprint(cascade: str, preprocess: Any, engine: str, precision: str) -> str:
    """One hash of all four; a change of any makes calibration, thresholds and certificates void."""
    text = json.dumps([cascade, preprocess, engine, precision], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
