"""`python -m dynamic serve`: a bundle over HTTP and gRPC. Imports no torch."""

import os
from pathlib import Path
from typing import Annotated

import typer

import dynamic
from dynamic.cli.options import (
    BatteryFloor,
    CpuMs,
    DeadlineMs,
    EnergyMj,
    Engine,
    Idle,
    LastS,
    LatencyMs,
    MaxDrop,
    MemoryMb,
    OnDrift,
    Percentile,
    Shelf,
    TemperatureC,
    Threads,
    fraction,
    idle_options,
    without_none,
)
from dynamic.cli.project.commands import add
from dynamic.policies.budget import check_on_drift

TOKEN = "DYNAMIC_SERVE_TOKEN"


def serve(
    shelf: Shelf,
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of HTTP. 0: any that is free.")] = 8080,
    grpc_port: Annotated[int | None, typer.Option(help="Port of gRPC. 0: any that is free. [no gRPC]")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model. [that of the folder]")] = None,
    latency_ms: LatencyMs = None,
    percentile: Percentile = "0.95",
    deadline_ms: DeadlineMs = None,
    cpu_ms: CpuMs = None,
    energy_mj: EnergyMj = None,
    memory_mb: MemoryMb = None,
    battery_floor: BatteryFloor = None,
    last_s: LastS = None,
    temperature_c: TemperatureC = None,
    max_drop: MaxDrop = None,
    on_drift: OnDrift = "report",
    engine: Engine = None,
    threads: Threads = None,
    idle: Idle = None,
    workers: Annotated[int, typer.Option(help="Requests that are answered at once.")] = 2,
    queue: Annotated[int, typer.Option(help="Requests that may wait. One more, and the oldest is dropped.")] = 64,
    max_batch: Annotated[int, typer.Option(help="Rows of a request.")] = 64,
    max_request_mb: Annotated[float, typer.Option(help="Megabytes (10^6 bytes) of the body of a request.")] = 16.0,
    max_json_mb: Annotated[float, typer.Option(help="Megabytes of it that may be JSON.")] = 2.0,
    max_megapixels: Annotated[float, typer.Option(help="Millions of pixels of the images of a request.")] = 50.0,
    timeout_ms: Annotated[
        float | None, typer.Option(help="Milliseconds after which a request is not answered. [no limit]")
    ] = None,
    drain_s: Annotated[float, typer.Option(help="Seconds that requests get to end after SIGTERM.")] = 20.0,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the token that clients have to send. [variable {TOKEN}]")
    ] = None,
    open_metrics: Annotated[bool, typer.Option("--open-metrics", help="/metrics needs no token.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="One line of JSON on stderr for each request.")] = False,
) -> None:
    """Serve a bundle by the Open Inference Protocol, version 2, until SIGTERM or Ctrl-C."""
    from dynamic.serve.opening import open_runtime, serve_until_signal
    from dynamic.serve.options import ServeOptions, token_from

    options = ServeOptions(
        host=host,
        port=port,
        grpc_port=grpc_port,
        name=name,
        workers=workers,
        queue=queue,
        max_batch=max_batch,
        max_request_mb=max_request_mb,
        max_json_mb=max_json_mb,
        max_megapixels=max_megapixels,
        timeout_ms=timeout_ms,
        drain_s=drain_s,
        token=token_from(os.environ.get(TOKEN), token_file),
        open_metrics=open_metrics,
        log_json=log_json,
    )
    budget = dynamic.Budget(
        latency_ms=latency_ms,
        percentile=fraction(percentile),
        deadline_ms=deadline_ms,
        energy_mj=energy_mj,
        memory_mb=memory_mb,
        battery_floor=battery_floor,
        battery_duration_s=last_s,
        temperature_c=temperature_c,
        max_drop=max_drop,
        on_drift=check_on_drift(on_drift),
        cpu_ms=cpu_ms,
    )
    arguments = without_none(engine=engine, threads=threads, options=idle_options(idle))
    run = open_runtime(dynamic.load(shelf), budget, options, **arguments)
    if not serve_until_signal(run, options):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, serve, example="dynamic serve shelf --port 8080 --latency-ms 50")
