"""The contract of callbacks of `fit` and `build`, and the call of several."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dynamic.bundle.bundle import Bundle
from dynamic.policies.errors import InputError

if TYPE_CHECKING:  # `build` of ONNX files needs no torch
    from dynamic.offline.training.fit_report import FitReport

logger = logging.getLogger("dynamic")


class Callback:
    """What `fit` and `build` call as they run. Override what you need: each method does nothing by itself.

    An exception at the start is raised, since nothing is lost yet. A later one is logged as a warning, and the run
    continues: a tracking server that goes down costs no training. `KeyboardInterrupt` ends the run, and the checkpoint
    holds the last whole epoch.

    Example:
        >>> class Printer(dynamic.Callback):
        ...     def on_epoch_end(self, epoch, figures):
        ...         print(epoch, sorted(figures))
        >>> report = dynamic.fit(net, train_loader, epochs=1, progress=False, callbacks=[Printer()])
        1 ['accuracy/1', 'loss/1']
    """

    def on_fit_start(self, settings: Mapping[str, Any]) -> None:
        """Called once the arguments of `fit` are checked.

        Args:
            settings: Mode, epochs, learning rate and the others, with defaults filled in.

        Raises:
            Exception: Anything, which `fit` or `build` raises.

        Example:
            >>> dynamic.Callback().on_fit_start({"mode": "heads"})
        """

    def on_epoch_end(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Called after every epoch, once the checkpoint is written. Not for epochs that came from a checkpoint.

        Args:
            epoch: Its number, from 1.
            figures: `loss/EXIT` and `accuracy/EXIT` of each trained exit: means over the epoch, on training data.

        Raises:
            Exception: Anything, which is logged.

        Example:
            >>> dynamic.Callback().on_epoch_end(1, {"loss/1": 0.7})
        """

    def on_fit_end(self, report: "FitReport") -> None:
        """Called with what `fit` returns.

        Args:
            report: The report.

        Raises:
            Exception: Anything, which is logged.

        Example:
            >>> report = dynamic.fit(net, train_loader, epochs=1, progress=False)
            >>> dynamic.Callback().on_fit_end(report)
        """

    def on_build_start(self, settings: Mapping[str, Any]) -> None:
        """Called once the arguments of `build` are checked.

        Args:
            settings: Engine, precision, targets, risk and the others, and the names of the networks.

        Raises:
            Exception: Anything, which `fit` or `build` raises.

        Example:
            >>> dynamic.Callback().on_build_start({"engine": "onnxruntime"})
        """

    def on_build_end(self, bundle: Bundle) -> None:
        """Called with what `build` returns.

        Args:
            bundle: The bundle, in its temporary folder.

        Raises:
            Exception: Anything, which is logged.

        Example:
            >>> dynamic.Callback().on_build_end(bundle)
        """

    def on_error(self, error: BaseException) -> None:
        """Called where `fit` or `build` ends with an error or an interrupt, after it has started.

        Args:
            error: The error, which is raised afterwards.

        Raises:
            Exception: Anything, which is logged.

        Example:
            >>> dynamic.Callback().on_error(KeyboardInterrupt())
        """


class Callbacks:
    """Several callbacks, called in their order.

    Args:
        each: The callbacks.

    Raises:
        InputError: One of them is no `Callback`.
    """

    def __init__(self, each: Sequence[Callback] = ()) -> None:
        for one in each:
            if not isinstance(one, Callback):
                raise InputError(
                    f"callbacks has a {type(one).__name__}: give dynamic.MLflowLogger, dynamic.WandbLogger, or a class "
                    "that inherits from dynamic.Callback"
                )
        self._each = tuple(each)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a method of each. An exception is logged, and the next is called."""
        for one in self._each:
            try:
                getattr(one, name)(*arguments)
            except Exception as error:
                logger.warning("%s failed in %s (%r), and the run continues", type(one).__name__, name, error)

    @contextmanager
    def running(self, name: str, *arguments: Any) -> Iterator[None]:
        """Call a method of each, then run the block. Where the block raises, `on_error` is called first."""
        for one in self._each:
            getattr(one, name)(*arguments)
        try:
            yield
        except BaseException as error:
            self.call("on_error", error)
            raise

    def epochs(self, exits: Sequence[str]) -> Callable[[int, Sequence[float], Sequence[float]], None]:
        """A function that reports the epoch, the losses `[S]` and the accuracies `[S]` of these exits."""

        def report(epoch: int, loss: Sequence[float], accuracy: Sequence[float]) -> None:
            figures = {f"loss/{name}": value for name, value in zip(exits, loss, strict=True)}
            figures |= {f"accuracy/{name}": value for name, value in zip(exits, accuracy, strict=True)}
            self.call("on_epoch_end", epoch, figures)

        return report
