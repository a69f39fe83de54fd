"""The records that a report measures on, with small pictures or beginnings of their inputs: images and texts."""

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.replay import predictions
from dynamic.policies.records import CERTIFY, Records
from dynamic.policies.scores import softmax
from dynamic.report.reported_bundle import ReportedBundle
from dynamic.report.stages_alone import certifying

SIDE = 64  # pixels of the longer side of a picture: 1 to 2 kB each
_CHARACTERS = 160  # of a text


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a report measures on.

    Args:
        records: N records that chose no thresholds.
        truth: The right classes `[N]`. Without labels they are the answers of the reference.
        labelled: Whether they are labels.
        thumbnails: A picture of each input `[N]`, uint8 `[H, W, 3]`. Empty: there are none.
        source: Where the records are from, in words.
        texts: The beginning of each input `[N]`. Empty: they are no texts.
    """

    records: Records
    truth: NDArray[np.int64]
    labelled: bool
    thumbnails: tuple[NDArray[np.uint8], ...]
    source: str
    texts: tuple[str, ...] = ()

    @property
    def shows_inputs(self) -> bool:
        """Whether a person can look at the inputs."""
        return bool(self.thumbnails or self.texts)

    def picture(self, index: int) -> str:
        """The picture of an input as a data URI, of the format that is smaller for it."""
        from PIL import Image

        image = Image.fromarray(self.thumbnails[index])
        files: dict[str, bytes] = {}
        for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
            buffer = io.BytesIO()
            image.save(buffer, kind, **options)
            files[kind] = buffer.getvalue()
        kind = min(files, key=lambda name: len(files[name]))
        return f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode()}"


def evidence_of(bundle: ReportedBundle, eval_loader: Iterable[Any] | None, progress: bool | None) -> Evidence:
    """Run the inputs of a loader, or take the records of the bundle that certified.

    Args:
        bundle: The bundle.
        eval_loader: Batches `(inputs, labels)`, as `run` takes inputs. None: the records in the bundle.
        progress: Show a progress bar on stderr. None: where that is a terminal.

    Returns:
        The records and pictures.
    """
    thumbnails: tuple[NDArray[np.uint8], ...] = ()
    texts: tuple[str, ...] = ()
    if eval_loader is None:
        records = certifying(bundle.records)
        chose = "chose no thresholds" if bool((records.part == CERTIFY).all()) else "chose the thresholds too"
        source = f"{len(records)} calibration records in the bundle that {chose}"
    else:
        watched = Watched(eval_loader)
        records = bundle.calibrate(watched, progress=progress)
        thumbnails = tuple(watched.thumbnails) if len(watched.thumbnails) == len(records) else ()
        texts = tuple(watched.texts) if len(watched.texts) == len(records) else ()
        source = f"the {len(records)} inputs that were given for this report"
    labelled = records.is_labelled and records.label is not None
    label = records.label if labelled else None
    truth = predictions(softmax(records.logits[:, -1])) if label is None else label
    return Evidence(records, truth, labelled, thumbnails, source, texts)


class Watched:
    """A loader that keeps a small picture or the beginning of each input that it hands on."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader
        self.thumbnails: list[NDArray[np.uint8]] = []
        self.texts: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            if isinstance(batch, (tuple, list)) and len(batch) == 2:
                for x in _rows(batch[0]):
                    if isinstance(x, str):
                        self.texts.append(x if len(x) <= _CHARACTERS else f"{x[:_CHARACTERS]}...")
                    elif (small := thumbnail(x)) is not None:
                        self.thumbnails.append(small)
            yield batch


def _rows(inputs: Any) -> Iterable[Any]:
    """The inputs of a batch one by one. None where a batch holds several inputs by name."""
    return () if isinstance(inputs, (dict, str)) else inputs


def thumbnail(x: Any) -> NDArray[np.uint8] | None:
    """A small picture `[H, W, 3]` of one input. None: it is no image.

    Args:
        x: A PIL image, uint8 `[H, W, C]`, or a normalized array `[C, H, W]`, which is stretched to black and white.
    """
    array = np.asarray(x)
    if array.ndim == 2 and array.dtype == np.uint8:
        array = array[..., None]
    if array.ndim != 3:
        return None
    if array.dtype != np.uint8:
        if array.shape[0] not in (1, 3) or array.dtype.kind != "f":
            return None
        low, high = np.nanmin(array), np.nanmax(array)
        scaled = np.nan_to_num((array - low) / max(high - low, 1e-9))
        array = np.moveaxis(np.rint(255 * scaled), 0, -1).astype(np.uint8)
    if array.shape[-1] not in (1, 3, 4):
        return None
    from PIL import Image

    image = Image.fromarray(np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3])
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image.convert("RGB"), np.uint8)
