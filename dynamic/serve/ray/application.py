"""A bundle as an application of Ray Serve."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.bundle_reader import load
from dynamic.policies.budget import Budget
from dynamic.policies.control.feasibility import check_budget
from dynamic.policies.errors import BundleError
from dynamic.serve.options import ServeOptions, checked_name
from dynamic.serve.ray.replica import Replica
from dynamic.serve.ray.settings import ReplicaSettings, UserConfig
from dynamic.serve.ray.split.choice import Cut, checked_cut
from dynamic.serve.ray.split.hop_time import hop_ms
from dynamic.serve.ray.split.planning import plan_split
from dynamic.serve.ray.split.scaling import Replicas
from dynamic.serve.request_errors import RETRY_AFTER_S

_LOOK_BACK_S = 30.0  # over how long reports of replicas count, which come every 10 s
_UP_S, _DOWN_S = 4.0, 60.0  # how long a number has to be too low, or too high
NAME, TAIL = "cascade", "tail"  # of the deployments, for `serve.get_deployment_handle`


def application(
    bundle: Bundle | str | Path,
    budget: Budget | None = None,
    *,
    options: ServeOptions | None = None,
    batch_wait_ms: float = 1.0,
    cut: Cut = "auto",
    replicas: int | tuple[int, int] = 1,
    tail_replicas: int | tuple[int, int] = 1,
    threads: int = 1,
    engine: str | None = None,
) -> serve.Application:
    """An application of Ray Serve, which answers as `run(x)` does, with one deployment or two.

    Its handle has `handle.run.remote(x, deadline_s=None)`. Over HTTP it speaks the Open Inference Protocol, as
    `dynamic.serve.Server` does. Requests over HTTP and over handles share batches, and wait for others no longer than
    `batch_wait_ms` and their own deadline allow. A batch holds inputs of one shape. So texts and sounds of several
    lengths share none, unless their preprocessing pads them to the same length (`pad_to_multiple_of` for texts).

    With two, the head runs the stages before the cut. Rows that exit there answer at once. Those that continue go to
    the tail with what they need, the smaller of carry and inputs, and share batches there with rows of other requests.
    Both run stage by stage, with the answers of one deployment that does. Where the tail gives no answer in time, or
    fails, a row keeps that of its last exit, with `certified=False`. `cut="auto"` splits only where the share of inputs
    that continue, times the time that they still take, is more than a hop between two deployments, which it measures.
    Its reason is logged, and is in the metadata of the model and in `handle.explain.remote()`.

    A row whose deadline leaves no time for a full answer gets that of the last exit in time, with `certified=False`.
    Where more than `options.queue` requests wait, the one that has waited longest is shed.

    `serve.run` with another budget or another bundle changes the replicas that run, and no request fails, if `cut` is a
    number or None. Head and tail take a bundle at different times. Until both have, rows keep the answer of their
    exit, and rows without one are begun again. They fail with BundleError after 10 s. Other changes start new replicas
    before the old ones end. `cut="auto"` is decided again on each `serve.run`, and another result is such a change. If
    it is one deployment, the tail ends while old heads still ask it. So deploy again with the number that was chosen.

    Args:
        bundle: The bundle, or its folder. Every node of the cluster finds it under the same path.
        budget: The limits. None: none.
        options: What is accepted, the rows of a batch (`max_batch`), and how many requests wait (`queue`). Host, port,
            workers and `drain_s` are those of Ray. None: the usual ones.
        batch_wait_ms: How long a request waits at most for others to share its batch.
        cut: "auto", None for one deployment, or the first stage of the tail. "auto" deploys an application of its own
            for a second or two where a split might be worth it, and starts Ray Serve for that. So start Serve before if
            its own options of HTTP do not suit.
        replicas: How many processes answer, or run the head: a number, or the least and the most.
        tail_replicas: How many run the tail. Where it is the least and the most, Ray's own policy follows how many
            requests are in them. `dynamic.serve.ray.split.scaling.follow_head` follows what the head passes on, also
            where the head has a fixed number. It is named in a file for `serve deploy`, since Ray takes policies of
            applications only there.
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
    heads, tails = Replicas.of(replicas, "replicas"), Replicas.of(tail_replicas, "tail_replicas")
    if isinstance(bundle, Bundle) and not bundle.folder.is_dir():
        raise BundleError(f"{bundle.folder} is no folder: save the bundle first, as replicas load it from there")
    loaded = bundle if isinstance(bundle, Bundle) else load(bundle)
    folder, budget = loaded.folder.resolve(), budget or Budget()
    if loaded.costs is not None:
        check_budget(budget, loaded.frontier)
    options = options or ServeOptions()
    options = replace(options, name=options.name or checked_name(folder.name))
    settings = ReplicaSettings(options=options, batch_wait_ms=batch_wait_ms, engine=engine, threads=threads)
    cut = checked_cut(cut, len(loaded.spec.stages))
    split = plan_split(loaded, budget, cut, engine, threads, hop_ms)
    settings = replace(settings, split=split)
    config = UserConfig.of(folder, budget).to_json()
    bound = []
    if split.cut is not None:
        tail = replace(settings, is_head=False)
        bound = [_deployment(Replica, TAIL, tail, config, tails).bind(tail)]
    follows = bool(bound) and tails.least < tails.most
    head = _deployment(serve.ingress()(Replica), NAME, settings, config, heads, reports=follows)
    return head.bind(settings, *bound)


def _deployment(
    kind: Any, name: str, settings: ReplicaSettings, config: Any, replicas: Replicas, reports: bool = False
) -> serve.Deployment:
    """The deployment of a part of the cascade. `reports`: its replicas report rates even where their number is fixed.

    Ray collects reports only where there is an `autoscaling_config`, and `follow_head` needs those of the head.
    """
    scaling = AutoscalingConfig(
        min_replicas=replicas.least,
        max_replicas=replicas.most,
        initial_replicas=replicas.least,
        target_ongoing_requests=settings.options.max_batch,
        look_back_period_s=_LOOK_BACK_S,
        upscale_delay_s=_UP_S,
        downscale_delay_s=_DOWN_S,
    )
    is_fixed = replicas.least == replicas.most and not reports
    deployment = serve.deployment(
        kind,
        name=name,
        **({"num_replicas": replicas.least} if is_fixed else {"autoscaling_config": scaling}),
        ray_actor_options={"num_cpus": settings.threads},
        user_config=config,
        max_ongoing_requests=settings.most_ongoing,
        max_queued_requests=settings.options.queue,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        max_surge_percent=100,
    )
    return _with_version(deployment, settings.version)


def _with_version(deployment: Any, version: str) -> serve.Deployment:
    """The deployment with a version, so that one that differs in `user_config` alone starts no replica again.

    `serve.run` draws another version each time, and `serve deploy` takes it from the file, as of Ray 2.60.
    """
    try:
        versioned: serve.Deployment = deployment.options(version=version, _internal=True)
    except (TypeError, ValueError):  # another Ray: new replicas start before the old ones end
        return deployment  # type: ignore[no-any-return]
    return versioned
