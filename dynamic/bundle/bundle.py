"""The folder that is deployed: graphs, ladder, records, costs and a manifest that vouches for every file.

```
shelf/
├── bundle.json       schema, inputs, stages, classes, preprocessing, fingerprint, hash of every file
├── ladder.json       operating points
├── golden.json       decisions that a policy written in another language must give (dynamic/bundle/golden_vectors/)
├── records.npz       calibration records
├── README.md        the model card, for people. It may be edited
├── canaries.npz      some calibration inputs, with the logits of every stage (dynamic/bundle/canaries/canary_set.py)
├── graph.onnx        the whole cascade as one graph, for batches, and graph_single.onnx for one input at a time
├── backbones/        a graph for each stage, the weights of each backbone stored once
├── weights/          the networks' weights to train on (safetensors)
├── choices/          the engine that "auto" took on each machine, and what the others took
├── checks/           what the canaries said on the machines this folder has been on
└── costs/            measured on the machines this folder has been on, each with the frontier that follows from it
```
Nothing in it is pickle.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic.bundle.bundle_engine import open_bundle_engine
from dynamic.bundle.bundle_writer import MACHINE_FOLDERS, save_copy
from dynamic.bundle.canaries.canary_set import CANARIES, Canaries
from dynamic.bundle.canaries.check import CanaryReport
from dynamic.bundle.canaries.reports import canary_report, engine_agrees
from dynamic.bundle.contract import Preprocessing
from dynamic.bundle.fingerprint import EngineIdentity, fingerprint
from dynamic.bundle.manifest import preprocess_json
from dynamic.bundle.measurements.cost_profile import check_powers, profile_here
from dynamic.bundle.measurements.record_writer import calibrate_here
from dynamic.bundle.measurements.stored_costs import costs_name, is_of_route, keep_costs, stored_costs, write_costs
from dynamic.bundle.sharing.hub import PREFIX, check_name, upload
from dynamic.bundle.sharing.model_card import CARD, model_card
from dynamic.bundle.sharing.slim_facts import SlimFacts
from dynamic.bundle.tables import bundle_text
from dynamic.bundle.version_files import VersionFiles
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.options import EngineOptions, Route, keywords_of
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies.budget import Budget
from dynamic.policies.costs import Costs
from dynamic.policies.errors import BundleError, CorruptError
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Ladder
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner
from dynamic.policies.words.short_repr import short_repr
from dynamic.storage.open_files import HeldFiles
from dynamic.storage.temporary_files import TemporaryFolder

if TYPE_CHECKING:
    from dynamic.policies.decision import Policy
    from dynamic.report.page.page import Report
    from dynamic.runtime.decisions.decision_log import OnChange
    from dynamic.runtime.decisions.device_reading import HasLatest
    from dynamic.runtime.drift.streams import DriftOptions
    from dynamic.runtime.runtime import Runtime  # which knows bundles by their contract


@dataclass(frozen=True)
class Bundle:
    """A cascade with everything needed to run it under a budget.

    `dynamic.build` and `dynamic.load` make bundles. Nothing in one changes once it is made: `profile` gives another.

    Args:
        folder: The folder that it was read from.
        spec: Inputs, stages in their order, and the number of classes.
        ladder: The certified operating points.
        engine: The engine of the calibration.
        precision: The precision of the calibration.
        cascade: The fingerprint of the networks.
        classes: Class names in label order. None: they have none.
        preprocess: What makes inputs from images, sounds or texts. None: inputs arrive ready.
        costs: What stages cost on this machine. None: it is not profiled yet.
        modules: The torch modules that engine "torch" runs. None: there are none.
        modules_cascade: The fingerprint of these modules. None: it is not known.
        forced: The route that the costs are of, where one was given.
        calibrated_on: The engine and machine of the calibration. None: they are not known.
        hashes: SHA-256 of every file that the manifest lists, by name.
        preload: Whether a runtime may start threads before its first request.
        slim: The limits that `dynamic.slim` made it for, and what it lacks. None: it is whole.

    Example:
        >>> bundle = dynamic.load("shelf")
        >>> bundle.engine, bundle.classes
        ('onnxruntime', ('a', 'b', 'c', 'd'))
    """

    folder: Path
    spec: CascadeSpec
    ladder: Ladder
    engine: str
    precision: str
    cascade: str
    classes: tuple[str, ...] | None = None
    preprocess: Preprocessing | None = None
    costs: Costs | None = None
    modules: tuple[Any, ...] | None = field(default=None, repr=False)
    modules_cascade: str | None = field(default=None, repr=False)  # fingerprint of what engine "torch" runs, if known
    forced: str | None = field(default=None, repr=False)
    calibrated_on: EngineIdentity | None = field(default=None, repr=False)
    # SHA-256 of every file that the manifest vouched for when this bundle was read
    hashes: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    preload: bool = field(default=True, repr=False)  # whether a runtime may start threads before its first request
    slim: SlimFacts | None = field(default=None, repr=False)
    _owner: object = field(default=None, repr=False)  # keeps a temporary folder alive
    _held: HeldFiles | None = field(default=None, repr=False, compare=False)  # files of the version that was read

    def __str__(self) -> str:
        """The ladder as a table, which of its points are one network alone, and, once profiled, what they cost here."""
        return bundle_text(self)

    def __repr__(self) -> str:
        stages = ", ".join(stage.name for stage in self.spec.stages)
        certified = "certified" if self.ladder.certified else "not certified"
        points = f"{len(self.ladder.points)} points {certified}"
        profiled = "not profiled" if self.costs is None else "profiled here"
        folder = "not saved" if self.is_temporary else repr(str(self.folder))
        slim = [] if self.slim is None else [f"slim, {self.slim}"]
        return short_repr(
            "Bundle", [folder, *slim, f"stages {stages}", points, f"{self.engine} {self.precision}", profiled]
        )

    @cached_property
    def records(self) -> Records:
        """The calibration records, read when first asked for.

        Raises:
            CorruptError: Their file was altered after this bundle was loaded.
        """
        records = self._files.read("records.npz", Records.load)
        if records.logits.shape[1:] != (len(self.spec.stages), self.spec.classes):
            raise CorruptError(
                f"{self.folder}: records.npz holds logits {list(records.logits.shape)} for {len(self.spec.stages)} "
                f"stages and {self.spec.classes} classes. Build or copy the bundle again"
            )
        return records

    @property
    def canaries(self) -> Canaries | None:
        """The canaries, or None in a bundle that was built without. Raises CorruptError where they do not read."""
        if CANARIES not in self.hashes:
            return None
        return self._files.read(CANARIES, lambda path: Canaries.load(path, self.spec))

    @property
    def frontier(self) -> Frontier:
        """The ladder with the costs of this machine. Raises BundleError before `profile`."""
        if self.costs is None:
            raise BundleError("this bundle has no costs for this machine yet: call bundle.profile() first")
        return Frontier.of(self.ladder, self.costs)

    def costs_on(self, engine: str, precision: str, threads: int, route: str | None = None) -> Costs | None:
        """What stages cost on this machine with an engine, measured now or earlier.

        Args:
            engine: Its name.
            precision: "f32" or "bf16".
            threads: Threads of the engine.
            route: Costs of this route at every batch size. None: of the faster one, never of one that was given.

        Returns:
            The costs. None where they were never measured.

        Raises:
            Nothing: a file that does not read is logged, and counts as none.

        Example:
            >>> costs = bundle.costs
            >>> bundle.costs_on(costs.engine, costs.precision, costs.threads) == costs
            True
        """
        costs = self.costs
        ours = costs is not None and (costs.engine, costs.precision, costs.threads) == (engine, precision, threads)
        if costs is not None and ours and self.forced in (None, route) and is_of_route(costs, route):
            return costs
        stored = stored_costs(self, costs_name(engine, precision, threads))
        return stored if stored is not None and is_of_route(stored, route) else None

    def precision_on(self, engine: str) -> str:
        """The precision that an engine computes in.

        Args:
            engine: Its name.

        Returns:
            The calibrated precision on the calibrated engine, "f32" on others.

        Raises:
            Nothing: the name is not checked.

        Example:
            >>> bundle.precision_on("openvino")
            'f32'
        """
        return self.precision if engine == self.engine else "f32"

    def check_files(self, *names: str, folder: Path | None = None) -> None:
        """Compare files with what they were when this bundle was loaded.

        Args:
            names: Their names in the folder of the bundle. All files are compared where none is given.
            folder: Where the files lie. The version that was loaded unless given, wherever that lies now.

        Raises:
            CorruptError: A file is missing or was altered.

        Example:
            >>> bundle.check_files("ladder.json")
        """
        self._files.check(*names, folder=folder)

    @contextmanager
    def files(self, *names: str) -> Iterator[Path]:
        """Files of the version that was read, also once another bundle lies in its folder.

        Args:
            names: Their names in the bundle.

        Yields:
            The folder where they lie under these names. It may be a temporary one.

        Raises:
            CorruptError: A file is missing or was altered.

        Example:
            >>> with bundle.files("ladder.json") as folder:
            ...     (folder / "ladder.json").is_file()
            True
        """
        with self._files.folder_of(*names) as folder:  # this generator keeps the bundle, and so a temporary folder
            yield folder

    @property
    def place(self) -> Path | None:
        """Where the version that was read lies now. None where another took its place, or its folder was removed."""
        return self._files.place

    def size_of(self, name: str) -> int:
        """The size of a file of this version, also once another bundle lies in its folder.

        Args:
            name: Its name in the bundle.

        Returns:
            Bytes.

        Raises:
            OSError: There is no such file.

        Example:
            >>> bundle.size_of("ladder.json") > 100
            True
        """
        return self._files.size(name)

    def copy_to(self, folder: Path, rooms: Sequence[str] = MACHINE_FOLDERS) -> None:
        """Copy the files that the manifest lists, the manifest, and what machines added.

        Args:
            folder: The folder to copy into. It exists.
            rooms: Of what machines added, what to copy. Links and files of other kinds are not copied.

        Raises:
            CorruptError: A file is missing or was altered after this bundle was loaded.
            OSError: The disk refused.

        Example:
            >>> import pathlib, tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     bundle.copy_to(pathlib.Path(folder))
            ...     dynamic.load(folder).engine
            'onnxruntime'
        """
        self._files.copy_to(folder, rooms)

    def combiner(self) -> Combiner:
        """How stages' logits become answers and scores."""
        return Combiner(
            self.ladder.temperature, self.ladder.score, combine=self.ladder.combine, backbone=self.ladder.backbone
        )

    def fingerprint(self, engine: str, precision: str) -> str:
        """The fingerprint of this cascade and its preprocessing on an engine: what a certificate belongs to.

        Args:
            engine: Its name. Engine "torch" runs the modules that were given, which may have other weights.
            precision: "f32" or "bf16".

        Returns:
            The fingerprint. It is that of the ladder where nothing changed.

        Raises:
            Nothing: the names are not checked.

        Example:
            >>> bundle.fingerprint("onnxruntime", "f32") == bundle.ladder.fingerprint
            True
        """
        cascade = self.cascade if engine != "torch" else self.modules_cascade or "unknown modules"
        return fingerprint(cascade, preprocess_json(self.preprocess), engine, precision)

    def open(
        self,
        engine: str | None = None,
        precision: str | None = None,
        *,
        threads: int | None = None,
        route: Route | None = None,
        options: EngineOptions | None = None,
    ) -> CascadeEngine:
        """Open an engine for this cascade, and run its canaries where they never ran on this machine.

        Args:
            engine: "onnxruntime", "openvino", "torch", or "auto": the fastest of those installed, each in the precision
                it would run in, measured on this machine once. None: the one that was calibrated.
            precision: "f32" or "bf16". None: the calibrated one on the calibrated engine, "f32" on others.
            threads: Threads of the engine. None: one for each core that this process may use, or that a container's
                quota leaves. On engine "torch" as many as torch has been set to.
            route: "graph" or "stages" for every request that may take it. None: whichever was measured faster.
            options: Options of one engine, such as `dynamic.OnnxRuntimeOptions(idle="spin")`.

        Returns:
            The engine. Its `agrees` says whether it answers as in calibration.

        Raises:
            EngineError: The engine is unknown, not installed, or does not load.
            SettingError: An option is out of range, or the engine has no such option.

        Example:
            >>> engine = bundle.open(threads=1)
            >>> engine.name, engine.threads
            ('onnxruntime', 1)
            >>> engine.close()
        """
        return self._open(engine, precision, keywords_of(options, threads, route))

    def _open(self, engine: str | None, precision: str | None, keywords: dict[str, Any]) -> CascadeEngine:
        opened = open_bundle_engine(self, self._files, engine, precision, keywords)
        # without preload nothing runs before a runtime's first request, which checks (see `Deployment.check`)
        opened.agrees = self.preload and self.agrees(opened)
        return opened

    def open_unchecked(self, engine: str | None = None, precision: str | None = None) -> CascadeEngine:
        """Open an engine without running its canaries.

        Args:
            engine: Its name, as for `open`. None: the one that was calibrated.
            precision: "f32" or "bf16". None: the calibrated one on the calibrated engine, "f32" on others.

        Returns:
            The engine.

        Raises:
            EngineError: The engine is unknown, not installed, or does not load.

        Example:
            >>> bundle.open_unchecked().close()
        """
        return open_bundle_engine(self, self._files, engine, precision, {})

    def check(
        self,
        engine: str | None = None,
        precision: str | None = None,
        *,
        threads: int | None = None,
        route: Route | None = None,
        options: EngineOptions | None = None,
        again: bool = False,
        progress: bool | None = None,
    ) -> CanaryReport | None:
        """Whether an engine on this machine answers as it did in calibration.

        Args:
            engine: Its name, as for `open`. None: the one that was calibrated.
            precision: "f32" or "bf16". None: the one that was calibrated.
            threads: Threads of the engine. None: one for each core that this process may use.
            route: "graph" or "stages" for every request that may take it. None: whichever was measured faster.
            options: Options of one engine, such as `dynamic.OnnxRuntimeOptions(idle="spin")`.
            again: Run the canaries although they ran before under the same engine, version, threads and processor.
            progress: Show a progress bar on stderr. None: where that is a terminal.

        Returns:
            The report, or None in a bundle without canaries.

        Raises:
            EngineError: the engine is unknown or not installed.
            CorruptError: the canaries do not read.

        Example:
            >>> report = dynamic.load("shelf").check()
            >>> report.agrees
            True
        """
        keywords = keywords_of(options, threads, route)
        opened = open_bundle_engine(self, self._files, engine, precision, keywords)
        try:
            return canary_report(self, opened, again=again, progress=progress)
        finally:
            opened.close()

    def agrees(self, opened: CascadeEngine) -> bool:
        """Whether an open engine answers as in calibration. Its canaries run where they never ran on this machine.

        Args:
            opened: The engine. One with another fingerprint has nothing to agree with, and is certified by nothing.

        Returns:
            False where the canaries differ or the engine fails on them, which is logged.

        Raises:
            CorruptError: The canaries do not read.

        Example:
            >>> engine = bundle.open()
            >>> bundle.agrees(engine)
            True
            >>> engine.close()
        """
        if self.ladder.fingerprint != self.fingerprint(opened.name, opened.precision):
            return True
        return engine_agrees(self, opened)

    @property
    def is_temporary(self) -> bool:
        """Whether the folder goes with the bundle: it was built and not saved yet."""
        return self._owner is not None

    def calibrate(
        self,
        loader: Iterable[Any],
        *,
        engine: str | None = None,
        precision: str | None = None,
        groups: Sequence[Any] | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Records:
        """Records of the stages of this bundle on this machine, for `dynamic.recertify`. It needs no torch.

        Args:
            loader: Batches of `(inputs, labels)`, the inputs as `run` takes them.
            engine: Its name. None: the one that was calibrated.
            precision: "f32" or "bf16". None: the one that was calibrated.
            groups: `[N]`, what belongs together, such as a video. A group is never divided.
            seed: Of the lot that divides records into those that choose and those that certify.
            progress: Show a progress bar on stderr. None: where that is a terminal.

        Returns:
            The records, which say on which engine and machine they were made.

        Raises:
            CalibrationError: There are no inputs, or labels of one class.
            InputError: Inputs or labels do not fit the bundle.
            EngineError: The engine is unknown, not installed, or fails.

        Example:
            >>> records = bundle.calibrate([(inputs, labels)], progress=False)
            >>> len(records)
            600
        """
        return calibrate_here(
            self, loader, engine=engine, precision=precision, groups=groups, seed=seed, progress=progress
        )

    def profile(
        self,
        batch: Sequence[int] | None = None,
        seconds: float = 1.0,
        engine: str | None = None,
        progress: bool | None = None,
        *,
        active_mw: float | None = None,
        idle_mw: float | None = None,
        keep: bool = True,
        threads: int | None = None,
        route: Route | None = None,
        options: EngineOptions | None = None,
    ) -> "Bundle":
        """Measure every stage on this machine.

        It takes about `seconds` for each batch size and way to run it, and longer where requests take more than 10 ms.
        A bundle that was saved or loaded keeps the figures in its folder, one file for each machine and engine, so that
        the next `load` reads them.

        Args:
            batch: Batch sizes `[K]`, rising. None: 1, 8 and 64, but for those that would take it beyond a minute.
            seconds: How long each batch size is measured in each way.
            engine: Its name, as for `open`. None: the one that was calibrated.
            progress: Show a progress bar on stderr. None: where that is a terminal.
            active_mw: What this device draws while inference works, on top of `idle_mw`, in milliwatts, if you know.
                Then energy is power times time, and budgets may limit it. None: there is no energy without a meter.
            idle_mw: What this device draws while it waits, in milliwatts.
            keep: Keep the figures in the folder of the bundle. Figures of a `route` that is given are never kept.
            threads: Threads of the engine. None: one for each core that this process may use.
            route: "graph" or "stages" for every request that may take it. None: whichever is measured faster.
            options: Options of one engine, such as `dynamic.OnnxRuntimeOptions(idle="spin")`.

        Returns:
            The bundle with these costs.

        Raises:
            SettingError: A power is no positive number, `idle_mw` is given alone, or a batch size is below 1.
            EngineError: The engine is unknown, not installed, or fails.

        Example:
            >>> here = bundle.profile(batch=(1,), seconds=0.05, progress=False)
            >>> len(here.costs.latency_ms)
            2
        """
        check_powers(active_mw, idle_mw)  # before minutes are spent
        keywords = keywords_of(options, threads, route)
        forced = keywords.get("route")
        opened = self._open(engine, None, keywords)
        try:
            costs = profile_here(
                opened, self._files, batch, seconds, active_mw=active_mw, idle_mw=idle_mw, progress=progress
            )
        finally:
            opened.close()
        if keep and self._owner is None and forced is None:
            keep_costs(self, self._files, costs)
        return replace(self, costs=costs, forced=forced)

    def runtime(
        self,
        budget: Budget | None = None,
        *,
        engine: str | None = None,
        threads: int | None = None,
        route: Route | None = None,
        options: EngineOptions | None = None,
        monitor: "HasLatest | None" = None,
        policy: "Policy | None" = None,
        drift_alpha: float | None = 0.01,
        drift: "DriftOptions | None" = None,
        queue: int = 64,
        workers: int = 1,
        on_change: "OnChange | None" = None,
        fallback: Sequence[str] | None = None,
    ) -> "Runtime":
        """Put this bundle to work under a budget.

        Args:
            budget: The limits. None: none, so that the most accurate point runs.
            engine: "onnxruntime", "openvino", "torch", or "auto" for the fastest here. None: the calibrated one.
            threads: Threads of the engine. None: one for each core that this process may use.
            route: "graph" or "stages" for every request that may take it. None: whichever was measured faster.
            options: Options of one engine, such as `dynamic.OnnxRuntimeOptions(idle="spin")`.
            monitor: Reads the device. None: a `dynamic.Monitor` that closes with the runtime.
            policy: Chooses the operating point. None: `dynamic.BudgetPolicy()`.
            drift_alpha: The probability of a false alarm of drift. None: inputs are not watched.
            drift: Which inputs the drift test counts. None: the usual ones.
            queue: How many inputs may wait. One more and the oldest is shed.
            workers: How many threads answer inputs that were submitted.
            on_change: Called with a `dynamic.Change` when the decision changes.
            fallback: The engines that answer when the first fails. None: those installed.

        Returns:
            The runtime. Use it in a `with` block, or close it.

        Raises:
            EngineError: The engine is unknown, not installed, or does not load.
            SettingError: An argument is out of range.
            BudgetError: The budget has a limit about which the costs say nothing.

        Example:
            >>> with bundle.runtime(dynamic.Budget(max_drop=0.01)) as run:
            ...     answer = run(x)
            >>> answer.name in bundle.classes
            True
        """
        from dynamic.runtime.runtime import Runtime

        return Runtime(
            self,
            budget,
            engine=engine,
            threads=threads,
            route=route,
            options=options,
            monitor=monitor,
            policy=policy,
            drift_alpha=drift_alpha,
            drift=drift,
            queue=queue,
            workers=workers,
            on_change=on_change,
            fallback=fallback,
        )

    def plot(self, axes: Any = None) -> Any:
        """Draw accuracy against latency: the points of the cascade, and each network alone.

        Before `profile` it draws the ladder. It needs matplotlib, which the extra "plot" brings.

        Args:
            axes: Axes of matplotlib to draw into. None: new ones.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is missing.

        Example:
            >>> axes = bundle.plot()
            >>> axes.get_xlabel()
            'mean latency of one input (ms)'
        """
        from dynamic.report.pictures import plot

        return plot(self, axes)

    def report(
        self,
        path: str | Path | None = None,
        *,
        eval_loader: Iterable[Any] | None = None,
        device: str = "mid-range-phone",
        budget: Budget | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> "Report":
        """Make one page of HTML about this bundle, which a browser opens without a network.

        It shows accuracy against latency, where inputs exit, what the cascade gets wrong that the reference gets right,
        scores, the costs of stages, a budget for each point, and a simulated day. What it cannot show it says. It needs
        the extra "plot".

        Args:
            path: The file to write. None: none, see `Report.save`. A notebook shows the report.
            eval_loader: Batches of `(inputs, labels)` to measure answers on, inputs as `run` takes them. Where they are
                images, the page shows some. None: the calibration records that chose nothing.
            device: A simulated device, see `dynamic.simulate.devices`.
            budget: The budget of the simulated day. None: one whose limit of latency binds.
            seed: Seed of the simulated day.
            progress: Show a progress bar on stderr. None: where that is a terminal.

        Returns:
            The report.

        Raises:
            InputError: Inputs or labels do not fit the bundle.
            SettingError: There is no such device.
            DiskError: The disk refuses.
            ModuleNotFoundError: A package is missing. The message names the extra.

        Example:
            >>> report = bundle.report("report.html", progress=False)
            >>> [row.name for row in report.content.points] == [point.name for point in ladder.points]
            True
        """
        from dynamic.report.page.page import report_of

        report = report_of(self, eval_loader, device=device, budget=budget, seed=seed, progress=progress)
        if path is not None:
            report.save(path)
        return report

    def with_costs(self, costs: Costs, forced: str | None) -> "Bundle":
        """This bundle with other costs.

        Args:
            costs: The costs.
            forced: The route that they are of, where one was given.

        Returns:
            The bundle.

        Raises:
            Nothing: whether the costs fit is checked when the frontier is read.

        Example:
            >>> bundle.with_costs(costs, None).costs == costs
            True
        """
        return replace(self, costs=costs, forced=forced)

    def preloaded(self) -> "Bundle":
        """This bundle as `load(preload=True)` gives it: engines that it opens run their canaries at once."""
        return replace(self, preload=True)

    def save(self, path: str | Path) -> "Bundle":
        """Write the bundle to a folder, with its model card, `README.md`. A bundle that lies there is replaced.

        The folder appears whole or not at all. Where it is a mounted volume, the files are put into it, and the
        manifest last.

        Args:
            path: The folder.

        Returns:
            The saved bundle.

        Raises:
            BundleError: Something else lies at `path`.
            DiskError: The disk refuses.

        Example:
            >>> bundle.save("copy").folder.name
            'copy'
        """

        target = Path(path).resolve()

        def add(copy: Path) -> None:
            (copy / CARD).write_text(model_card(self, target.name), encoding="utf-8")
            if self.costs is not None and self.forced is None:
                write_costs(self, copy, self.costs)

        copy = save_copy(self._files, target, add)
        return replace(self, folder=copy.folder, _owner=None, _held=copy.open_files)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Upload the bundle and its model card to the Hugging Face Hub. `dynamic.load("hf://owner/name")` reads it.

        What was measured on machines is not uploaded. A card that was edited in the folder of the bundle is kept.
        `records.npz` and `canaries.npz` hold calibration data: see `build(canaries=...)`. Files of a bundle that lies
        there are replaced.

        Args:
            name: The repository, `owner/name`, or `owner/name@branch`. It is made where there is none.
            private: Whether a new repository is private. One that exists remains as it is.

        Returns:
            The address of the repository.

        Raises:
            BundleError: The name is none, or the Hub refuses or cannot be reached.
            ModuleNotFoundError: huggingface_hub is missing. The message names the extra.

        Example:
            >>> bundle.push_to_hub("digits")
            Traceback (most recent call last):
            ...
            dynamic.policies.errors.BundleError: 'digits' names no repository: give owner/name, ...
        """
        check_name(name)
        with TemporaryFolder("hub") as folder:
            self.copy_to(folder, rooms=())
            card = None if self.place is None or self.is_temporary else self.place / CARD
            text = model_card(self, f"{PREFIX}{name.partition('@')[0]}")
            if card is not None and card.is_file() and not card.is_symlink():  # a link may lead to somebody's secrets
                text = card.read_text(encoding="utf-8")
            (folder / CARD).write_text(text, encoding="utf-8")
            return upload(folder, name, private)

    @property
    def _files(self) -> VersionFiles:
        # no field: `replace` and pickle carry the folder, the hashes and the open files
        return VersionFiles(self.folder, self.hashes, self._held)
