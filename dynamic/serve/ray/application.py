"""A bundle as an application of Ray Serve."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.bundle_reader import load
from dynamic.policies.budget import Budget
from dynamic.policies.control.feasibility import check_budget
from dynamic.policies.errors import BundleError, SettingError
from dynamic.policies.validation.numbers import plain
from dynamic.serve.options import ServeOptions, checked_name
from dynamic.serve.ray.replica import Replica
from dynamic.serve.ray.settings import ReplicaSettings, UserConfig
from dynamic.serve.request_errors import RETRY_AFTER_S

NAME = "cascade"  # of the deployment, for `serve.get_deployment_handle`


def application(
    bundle: Bundle | str | Path,
    budget: Budget | None = None,
    *,
    options: ServeOptions | None = None,
    batch_wait_ms: float = 1.0,
    replicas: int = 1,
    threads: int = 1,
    engine: str | None = None,
) -> serve.Application:
    """An application of Ray Serve with one deployment, which answers as `run(x)` does.

    Its handle has `handle.run.remote(x, deadline_s=None)`. Over HTTP it speaks the Open Inference Protocol, as
    `dynamic.serve.Server` does. Requests over HTTP and over handles share batches, and wait for others no longer than
    `batch_wait_ms` and their own deadline allow. A batch holds inputs of one shape. So texts and sounds of several
    lengths share none, unless their preprocessing pads them to the same length (`pad_to_multiple_of` for texts).

    A row whose deadline leaves no time for a full answer gets that of the last exit in time, with `certified=False`.
    Where more than `options.queue` requests wait, the one that has waited longest is shed.

    `serve.run` with another budget or another bundle changes the replicas that run, and no request fails. Other changes
    start new replicas before the old ones end.

    Args:
        bundle: The bundle, or its folder. Every node of the cluster finds it under the same path.
        budget: The limits. None: none.
        options: What is accepted, the rows of a batch (`max_batch`), and how many requests wait (`queue`). Host, port,
            workers and `drain_s` are those of Ray. None: the usual ones.
        batch_wait_ms: How long a request waits at most for others to share its batch.
        replicas: How many processes answer.
        threads: Threads of the engine in each of them, and the CPUs that Ray reserves for it.
        engine: As for `Bundle.runtime`.

    Returns:
        The application, for `ray.serve.run`.

    Raises:
        BundleError: There is no bundle in the folder.
        BudgetError: The budget has a limit about which the costs say nothing.
        SettingError: A value is out of range.

    Example:
        >>> from ray import serve
        >>> app = dynamic.serve.application("shelf", dynamic.Budget(latency_ms=50))
        >>> isinstance(app, serve.Application)
        True
    """
    replicas = plain(replicas)
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
        raise SettingError(f"replicas={replicas!r} must be a whole number of at least 1")
    if isinstance(bundle, Bundle) and not bundle.folder.is_dir():
        raise BundleError(f"{bundle.folder} is no folder: save the bundle first, as replicas load it from there")
    loaded = bundle if isinstance(bundle, Bundle) else load(bundle)
    folder, budget = loaded.folder.resolve(), budget or Budget()
    if loaded.costs is not None:
        check_budget(budget, loaded.frontier)
    options = options or ServeOptions()
    options = replace(options, name=options.name or checked_name(folder.name))
    settings = ReplicaSettings(options=options, batch_wait_ms=batch_wait_ms, engine=engine, threads=threads)
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": threads},
        user_config=UserConfig.of(folder, budget).to_json(),
        max_ongoing_requests=settings.most_ongoing,
        max_queued_requests=options.queue,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        max_surge_percent=100,
    )
    return _with_version(deployment, settings.version).bind(settings)


def _with_version(deployment: Any, version: str) -> serve.Deployment:
    """The deployment with a version, so that one that differs in `user_config` alone starts no replica again.

    `serve.run` draws another version each time, and `serve deploy` takes it from the file, as of Ray 2.60.
    """
    try:
        versioned: serve.Deployment = deployment.options(version=version, _internal=True)
    except (TypeError, ValueError):  # another Ray: new replicas start before the old ones end
        return deployment  # type: ignore[no-any-return]
    return versioned
