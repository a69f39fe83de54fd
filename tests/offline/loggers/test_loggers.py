"""MLflow with a store of files, read back with its own client, and Weights & Biases in its offline mode."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dynamic

mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny: pip install 'dynamic-inference[mlflow]'")


def network(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.fixture
def loader() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(30, 4), torch.arange(30) % 3) for _ in range(10)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where runs are written. A store of files is what mlflow-skinny has without a database library."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    yield (tmp_path / "runs").as_uri()
    while mlflow.active_run() is not None:
        mlflow.end_run()


def run_of(store: str, run_id: str | None) -> Any:
    return mlflow.MlflowClient(store).get_run(run_id)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # that files are in maintenance mode
def test_fit_and_build_are_one_run(loader: Any, store: str) -> None:
    logger = dynamic.MLflowLogger("exits", run_name="first", tracking_uri=store)
    net = dynamic.wrap(network(), torch.randn(2, 4), exits=1)
    report = dynamic.fit(net, loader, epochs=3, eval_loader=loader, progress=False, callbacks=[logger])
    run = run_of(store, logger.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.params["fit.mode"] == "heads"
    assert run.data.params["fit.epochs"] == "3"
    client = mlflow.MlflowClient(store)
    (name,) = report.exits
    history = client.get_metric_history(logger.run_id, f"loss/{name}")
    assert [(m.step, m.value) for m in history] == [
        (epoch, row[0]) for epoch, row in enumerate(report.history_loss, start=1)
    ]
    for level in report.held_out:
        assert run.data.metrics[f"held_out_accuracy/{level.stage}"] == level.right
    first = logger.run_id
    more = [(torch.randn(30, 4), torch.arange(30) % 3) for _ in range(10)]
    bundle = dynamic.build([network(2), net], more, max_drops=(0.5,), progress=False, callbacks=[logger])
    assert logger.run_id == first
    run = run_of(store, first)
    assert run.info.status == "FINISHED"
    for point in bundle.ladder.points:
        assert run.data.metrics[f"{point.name}/accuracy"] == point.accuracy.mid
        shares = [run.data.metrics[f"{point.name}/exits/{s.name}".replace("@", "_")] for s in bundle.spec.stages]
        assert tuple(shares) == point.shares
    assert run.data.tags["dynamic.fingerprint"] == bundle.ladder.fingerprint
    folder = client.download_artifacts(first, "bundle")
    assert dynamic.load(folder).ladder == bundle.ladder
    assert client.get_experiment_by_name("exits").experiment_id == run.info.experiment_id


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_active_run_is_used_and_left_open(loader: Any, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with mlflow.start_run() as active:
        net = dynamic.wrap(network(), torch.randn(2, 4), exits=1)
        for epochs in (1, 2):  # other settings than before: a parameter of a run cannot change
            logger = dynamic.MLflowLogger()
            dynamic.fit(net, loader, epochs=epochs, progress=False, callbacks=[logger])
            assert logger.run_id == active.info.run_id
        assert run_of(store, active.info.run_id).info.status == "RUNNING"
        assert run_of(store, active.info.run_id).data.params["fit.epochs"] == "1"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_run_that_fails_is_marked(loader: Any, store: str) -> None:
    broken = [(x * float("nan"), y) for x, y in loader]
    logger = dynamic.MLflowLogger(tracking_uri=store)
    net = dynamic.wrap(network(), torch.randn(2, 4), exits=1)
    with pytest.raises(dynamic.errors.InputError):
        dynamic.fit(net, broken, mode="joint", epochs=1, progress=False, callbacks=[logger])
    run = run_of(store, logger.run_id)
    assert run.info.status == "FAILED"
    assert "NaN" in run.data.tags["dynamic.error"]


@pytest.mark.parametrize(("name", "package"), [("MLflowLogger", "mlflow"), ("WandbLogger", "wandb")])
def test_a_missing_package_is_named(name: str, package: str) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None\n"
        f"import dynamic; dynamic.{name}()._begin({'' if package == 'mlflow' else repr('fit') + ', {}'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f'pip install "dynamic-inference[{package}]"' in done.stderr


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Weights & Biases in its offline mode: everything is written into a folder, and nothing is sent."""
    wandb = pytest.importorskip("wandb", reason="needs wandb: pip install 'dynamic-inference[wandb]'")
    for name, value in {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    yield wandb
    wandb.teardown()  # ends its process, which a variable of the environment names


def test_wandb_has_settings_figures_and_the_bundle(loader: Any, offline: Any, tmp_path: Path) -> None:
    logger = dynamic.WandbLogger(project="exits", name="first")
    net = dynamic.wrap(network(), torch.randn(2, 4), exits=1)
    report = dynamic.fit(net, loader, epochs=2, eval_loader=loader, progress=False, callbacks=[logger])
    run = logger.run
    more = [(torch.randn(30, 4), torch.arange(30) % 3) for _ in range(10)]
    bundle = dynamic.build([network(2), net], more, max_drops=(0.5,), progress=False, callbacks=[logger])
    assert logger.run is run  # one run for both
    assert run.config["fit"]["epochs"] == "2"
    assert run.config["build"]["engine"] == "onnxruntime"
    summary = dict(run.summary)
    (name,) = report.exits
    assert summary["epoch"] == 2
    assert summary[f"loss/{name}"] == pytest.approx(report.loss[0])
    assert summary["fingerprint"] == bundle.ladder.fingerprint
    for point in bundle.ladder.points:
        assert summary[f"{point.name}/accuracy"] == pytest.approx(point.accuracy.mid)
    logger.close()
    assert logger.run is None
    assert list(tmp_path.rglob("*.wandb"))


def test_a_run_of_the_user_is_left_open(loader: Any, offline: Any) -> None:
    with offline.init(project="exits") as run:
        logger = dynamic.WandbLogger(run, bundle=False)
        dynamic.fit(
            dynamic.wrap(network(), torch.randn(2, 4), exits=1), loader, epochs=1, progress=False, callbacks=[logger]
        )
        logger.close()
        run.log({"mine": 1})  # a run that has ended would refuse
        assert run.summary["mine"] == 1
