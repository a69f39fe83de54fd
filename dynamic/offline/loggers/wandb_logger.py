"""Runs of `fit` and `build` in Weights & Biases (extra "wandb"). API: https://docs.wandb.ai/ref/python."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynamic.bundle.bundle import Bundle
from dynamic.extras import with_remedy
from dynamic.offline.loggers.callbacks import Callback
from dynamic.offline.loggers.figures import bundle_facts, bundle_figures, fit_figures, settings_text
from dynamic.storage.temporary_files import TemporaryFolder

if TYPE_CHECKING:
    from dynamic.offline.training.fit_report import FitReport

_EPOCH = "epoch"


class WandbLogger(Callback):
    """Writes `fit` and `build` into one run of Weights & Biases: settings, losses and accuracies, points, the bundle.

    Args:
        run: A run that `wandb.init` gave, which is left open. None: one is made at the first call, and closed by
            `close` or when the program ends.
        project: Project of a new run. None: as W&B is set.
        name: Name of a new run. None: W&B makes one up.
        bundle: Whether the folder of the bundle is stored as an artifact of type "model".

    Example:
        >>> logger = dynamic.WandbLogger(project="digits", bundle=False)
        >>> logger.run is None  # until `fit` or `build` begins
        True
    """

    def __init__(
        self, run: Any = None, *, project: str | None = None, name: str | None = None, bundle: bool = True
    ) -> None:
        self.run = run
        self._project, self._name, self._bundle = project, name, bundle
        self._is_ours = run is None

    def on_fit_start(self, settings: Mapping[str, Any]) -> None:
        self._begin("fit", settings)
        self.run.define_metric(_EPOCH)
        for figure in ("loss/*", "accuracy/*"):
            self.run.define_metric(figure, step_metric=_EPOCH)

    def on_epoch_end(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.run.log({_EPOCH: epoch, **figures})

    def on_fit_end(self, report: "FitReport") -> None:
        self.run.summary.update(fit_figures(report))

    def on_build_start(self, settings: Mapping[str, Any]) -> None:
        self._begin("build", settings)

    def on_build_end(self, bundle: Bundle) -> None:
        self.run.summary.update({**bundle_figures(bundle), **bundle_facts(bundle)})
        if self._bundle:
            import wandb

            artifact = wandb.Artifact("bundle", type="model", metadata=bundle_facts(bundle))
            with TemporaryFolder("wandb") as folder:
                bundle.save(folder / "bundle")
                artifact.add_dir(str(folder / "bundle"))  # which copies the files
                self.run.log_artifact(artifact)

    def on_error(self, error: BaseException) -> None:
        self.run.summary["error"] = f"{type(error).__name__}: {error}"
        self._close(1)

    def close(self) -> None:
        """End the run, where this logger made it. `fit` and `build` may begin another."""
        self._close(0)

    def _close(self, exit_code: int) -> None:
        if self._is_ours and self.run is not None:
            self.run.finish(exit_code=exit_code)
            self.run = None

    def _begin(self, what: str, settings: Mapping[str, Any]) -> None:
        if self.run is None:
            try:
                import wandb
            except ModuleNotFoundError as error:
                raise with_remedy(error, "dynamic.WandbLogger") from error
            self.run = wandb.init(project=self._project, name=self._name)
        self.run.config.update({what: settings_text(settings)}, allow_val_change=True)
