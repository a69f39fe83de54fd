"""Whether the probabilities of files in a cascade sum to 1 in its records."""

from collections.abc import Iterable

from dynamic.offline.onnx_files.class_names import check_sums
from dynamic.offline.staged_network import Stage
from dynamic.policies.records import Records


def check_probabilities_of(stages: Iterable[Stage], records: Records) -> None:
    """Raises InputError where records of a file's probabilities `[N, C]` do not sum to 1."""
    for stage in stages:
        if stage.file is not None and stage.file.gives_probabilities:
            check_sums(records, records.stage_names.index(stage.name), stage.file.model)
