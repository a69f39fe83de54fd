"""Runs of `fit` and `build` in MLflow (extra "mlflow")."""

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynamic.bundle.bundle import Bundle
from dynamic.extras import with_remedy
from dynamic.offline.loggers.callbacks import Callback
from dynamic.offline.loggers.figures import bundle_facts, bundle_figures, fit_figures, settings_text
from dynamic.storage.temporary_files import TemporaryFolder

if TYPE_CHECKING:
    from dynamic.offline.training.fit_report import FitReport

_NOT_IN_NAMES = re.compile(r"[^\w\-. /:]", re.ASCII)
_MOST_LETTERS = 6000  # of a parameter


class MLflowLogger(Callback):
    """Writes `fit` and `build` into one run of MLflow: settings, losses and accuracies, operating points, the bundle.

    Where a run is active in this thread (`mlflow.start_run()`), it is used and left open. Otherwise a run is made at
    the first call, and used again by later ones of the same logger. No setting of MLflow is changed.

    Args:
        experiment: Name of the experiment, which is made where there is none. None: MLflow's default.
        run_name: Name of a new run. None: MLflow makes one up.
        tracking_uri: Where to write. None: as MLflow is set, by `mlflow.set_tracking_uri` or MLFLOW_TRACKING_URI.
        bundle: Whether the folder of the bundle is stored as artifacts of the run.

    Example:
        >>> logger = dynamic.MLflowLogger("digits", tracking_uri="sqlite:///runs.db")
        >>> logger.run_id is None  # until `fit` or `build` begins
        True
    """

    def __init__(
        self,
        experiment: str | None = None,
        *,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        bundle: bool = True,
    ) -> None:
        self.run_id: str | None = None
        self._experiment, self._run_name, self._uri, self._bundle = experiment, run_name, tracking_uri, bundle
        self._client: Any = None
        self._is_ours = False

    def on_fit_start(self, settings: Mapping[str, Any]) -> None:
        self._begin()
        self._write(parameters={f"fit.{name}": text for name, text in settings_text(settings).items()})

    def on_epoch_end(self, epoch: int, figures: Mapping[str, float]) -> None:
        self._write(figures, step=epoch)

    def on_fit_end(self, report: "FitReport") -> None:
        self._write(fit_figures(report), step=report.epochs)
        self._end("FINISHED")

    def on_build_start(self, settings: Mapping[str, Any]) -> None:
        self._begin()
        self._write(parameters={f"build.{name}": text for name, text in settings_text(settings).items()})

    def on_build_end(self, bundle: Bundle) -> None:
        self._write(bundle_figures(bundle))
        for name, text in bundle_facts(bundle).items():
            self._client.set_tag(self.run_id, f"dynamic.{name}", text)
        if self._bundle:
            with TemporaryFolder("mlflow") as folder:
                bundle.save(folder / "bundle")
                self._client.log_artifacts(self.run_id, str(folder / "bundle"), "bundle")
        self._end("FINISHED")

    def on_error(self, error: BaseException) -> None:
        self._client.set_tag(self.run_id, "dynamic.error", f"{type(error).__name__}: {error}"[:_MOST_LETTERS])
        self._end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def _begin(self) -> None:
        try:
            import mlflow
        except ModuleNotFoundError as error:
            raise with_remedy(error, "dynamic.MLflowLogger") from error
        active = mlflow.active_run()
        if self._client is None:
            self._client = mlflow.MlflowClient(self._uri)
        if active is not None and self._uri is None:
            self.run_id, self._is_ours = active.info.run_id, False
        elif self.run_id is None:
            run = self._client.create_run(self._experiment_id(), run_name=self._run_name)
            self.run_id, self._is_ours = run.info.run_id, True
        elif self._is_ours:  # of an earlier call
            self._client.update_run(self.run_id, status="RUNNING")

    def _experiment_id(self) -> str:
        if self._experiment is None:
            return "0"
        there = self._client.get_experiment_by_name(self._experiment)
        return str(self._client.create_experiment(self._experiment) if there is None else there.experiment_id)

    def _write(
        self,
        figures: Mapping[str, float] | None = None,
        *,
        step: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param

        now_ms = int(time.time() * 1000)
        metrics = [Metric(_NOT_IN_NAMES.sub("_", name), value, now_ms, step) for name, value in (figures or {}).items()]
        # a parameter of a run cannot change: a second call of `fit` with other settings would fail
        there = self._client.get_run(self.run_id).data.params if parameters else {}
        params = [Param(name, text[:_MOST_LETTERS]) for name, text in (parameters or {}).items() if name not in there]
        self._client.log_batch(self.run_id, metrics=metrics, params=params)

    def _end(self, status: str) -> None:
        if self._is_ours:
            self._client.set_terminated(self.run_id, status)
