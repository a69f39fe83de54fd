"""An ONNX file among torch networks: a module that runs the file itself in ONNX Runtime."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from dynamic.offline.onnx_files.onnx_file import OnnxModel
from dynamic.offline.onnx_files.stages.file_stage import FileStage, file_stage


class OnnxNetwork(nn.Module):
    """An ONNX file with the interface of a network. It has no parameters, and nothing trains it.

    Its graph goes into a bundle as it is. `forward` is what graphs are compared with.

    Args:
        model: The file.
    """

    def __init__(self, model: OnnxModel) -> None:
        super().__init__()
        self.model = model
        self.rounds = model.rounds
        self.register_buffer("content", torch.frombuffer(bytearray.fromhex(model.content), dtype=torch.uint8))
        self.register_buffer("float32", torch.empty(0), persistent=False)  # inputs in floating point get its type
        self._stages: dict[tuple[object, ...], FileStage] = {}

    @property
    def onnx_input_names(self) -> tuple[str, ...]:
        """Names of inputs that come without any."""
        return self.model.input_names

    def close(self) -> None:
        """Free the file's session. A later run loads it again."""
        for stage in self._stages.values():
            stage.run.close()

    @property
    def gives_probabilities(self) -> bool:
        """Whether the file has probabilities, of which its stage gives logarithms. It has run before."""
        return any(stage.kind == "probabilities" for stage in self._stages.values())

    def stage(self, inputs: Mapping[str, Tensor]) -> FileStage:
        """The stage of the file.

        Args:
            inputs: A batch of the cascade's inputs by name.

        Returns:
            The stage, the same for all batches of these names, dtypes and numbers of dimensions.

        Raises:
            InputError: The file does not take them, or gives no answers.
            EngineError: ONNX Runtime does not run it.
        """
        arrays = {name: np.ascontiguousarray(t.detach().cpu().numpy()) for name, t in inputs.items()}
        key = tuple((name, array.dtype.name, array.ndim) for name, array in arrays.items())
        if key not in self._stages:
            self._stages[key] = file_stage(self.model, arrays)
        return self._stages[key]

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Run the file.

        Args:
            args: Inputs, in the order of the file's.
            kwargs: Inputs by their names in the cascade.

        Returns:
            Logits `[B, C]`, logarithms where the file has probabilities.

        Raises:
            InputError: As for `stage`.
            EngineError: As for `stage`.
        """
        names = ("input",) if len(args) == 1 else self.onnx_input_names
        named = kwargs or dict(zip(names, args, strict=True))
        stage = self.stage(named)
        arrays = {name: np.ascontiguousarray(t.detach().cpu().numpy()) for name, t in named.items()}
        return torch.from_numpy(stage.logits(arrays)).to(next(iter(named.values())).device)


@contextmanager
def sessions_freed(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Around a run of networks: the sessions of the files among them are freed at the end."""
    try:
        yield
    finally:
        for network in networks:
            if isinstance(network, OnnxNetwork):
                network.close()


def names_of_files(networks: Sequence[nn.Module], names: Sequence[str]) -> list[str]:
    """The names of those networks that are ONNX files."""
    return [name for network, name in zip(networks, names, strict=True) if isinstance(network, OnnxNetwork)]
