"""What a replica is given: once when it starts, and whenever the application is deployed again."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

import dynamic
from dynamic.policies.budget import Budget
from dynamic.policies.errors import SettingError
from dynamic.policies.validation.numbers import plain
from dynamic.serve.options import ServeOptions
from dynamic.serve.ray.split.choice import WHOLE, Split

_WAITS = 2  # batches whose requests have a thread: one runs, one fills
_MANIFEST = "bundle.json"


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """What does not change while a replica runs.

    Args:
        options: What is accepted.
        batch_wait_ms: How long a request waits at most for others.
        engine: As for `Bundle.runtime`.
        threads: Threads of the engine.
        split: Where the cascade is cut, and why.
        is_head: Whether the stages before the cut run here, and requests come here. False: those from it on.

    Raises:
        SettingError: A value is out of range.
    """

    options: ServeOptions
    batch_wait_ms: float
    engine: str | None
    threads: int
    split: Split = WHOLE
    is_head: bool = True

    def __post_init__(self) -> None:
        wait_ms, threads = plain(self.batch_wait_ms), plain(self.threads)
        if isinstance(wait_ms, bool) or not isinstance(wait_ms, (int, float)) or not 0 <= wait_ms <= 1e6:
            raise SettingError(f"batch_wait_ms={wait_ms!r} must be a number of milliseconds from 0 to 1e6")
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise SettingError(f"threads={threads!r} must be a whole number of at least 1")

    @property
    def workers(self) -> int:
        """Threads that wait for answers: so many that one batch fills while another runs."""
        return _WAITS * self.options.max_batch

    @property
    def most_ongoing(self) -> int:
        """Requests that Ray may hand to a replica: as many as it answers and lets wait, and some to be shed."""
        return self.workers + 2 * self.options.queue

    @property
    def version(self) -> str:
        """Another one where a replica has to start again. What was measured for the split is no reason for that."""
        same = replace(self, split=Split(self.split.cut, ""))
        return hashlib.sha256(f"{dynamic.__version__} {same!r} {self.options.token!r}".encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class UserConfig:
    """What may change while a replica runs: `user_config` in the words of Ray.

    Args:
        folder: The folder of the bundle.
        budget: The limits.
        digest: Of the bundle's manifest, so that another bundle in the same folder is noticed. None: not looked at.
    """

    folder: Path
    budget: Budget
    digest: str | None = None

    @classmethod
    def of(cls, folder: Path, budget: Budget) -> "UserConfig":
        """The configuration of a bundle as it lies in its folder now."""
        content = (folder / _MANIFEST).read_bytes()
        return cls(folder=folder, budget=budget, digest=hashlib.sha256(content).hexdigest()[:16])

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, as files of Ray have it."""
        budget = {name: value for name, value in self.budget.to_json().items() if value != getattr(Budget(), name)}
        budget.pop("priority", None)
        if self.budget.priority != Budget().priority:
            budget["priority"] = list(self.budget.priority)
        return {"bundle": str(self.folder), "digest": self.digest, "budget": budget}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "UserConfig":
        """What `to_json` described. `digest` and `budget` may be left out.

        Raises:
            SettingError: There is no bundle, or a field is unknown.
            BudgetError: A limit is unknown or out of range.
        """
        if not isinstance(data, Mapping):
            raise SettingError(f"user_config={data!r} must be an object with 'bundle' and 'budget'")
        unknown = sorted(set(map(str, data)) - {"bundle", "digest", "budget"})
        limits = data.get("budget")
        if unknown or not isinstance(data.get("bundle"), str) or not isinstance(limits, (Mapping, NoneType)):
            raise SettingError(
                f"user_config has the fields {sorted(map(str, data))}: give 'bundle', the path of a folder, and "
                f"'budget', an object. Its budget is {limits!r}"
            )
        budget = dict(limits or {})
        if isinstance(budget.get("priority"), list):
            budget["priority"] = tuple(budget["priority"])
        return cls(folder=Path(data["bundle"]), budget=Budget.from_json(budget), digest=data.get("digest"))
