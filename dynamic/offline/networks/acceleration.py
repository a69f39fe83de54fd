"""Whether bf16 and channels-last memory save time: read from the processor, not timed, so that runs repeat exactly."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamic.policies.errors import SettingError


@dataclass(frozen=True)
class Acceleration:
    """How forward and backward run on `device`. Weights and their updates are float32."""

    device: torch.device
    bf16: bool
    channels_last: bool

    @staticmethod
    def choose(
        network: nn.Module, device: torch.device | str | None, bf16: bool | None, channels_last: bool | None
    ) -> "Acceleration":
        """What the user set. None: the network's own device, and each setting where it saves time there.

        Raises SettingError on a device that torch does not have here.
        """
        first = next(network.parameters(), None)
        try:
            where = torch.device(device or (first.device if first is not None else "cpu"))
            torch.empty(0, device=where)
        except (RuntimeError, AssertionError) as error:
            raise SettingError(
                f"device={device!r} cannot be used here ({error}). Leave it out, or use 'cpu'"
            ) from error
        fast = _fast_bf16(where) if bf16 is None else bf16
        # float32 convolutions gain nothing certain from channels-last, and bf16 units need it
        return Acceleration(where, fast, fast if channels_last is None else channels_last)

    def autocast(self) -> AbstractContextManager[object]:
        """The context forward runs in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def place(self, tensor: Tensor) -> Tensor:
        """A tensor on the device, with images `[B, C, H, W]` in channels-last order where that is on."""
        moved = tensor.to(self.device, non_blocking=True)
        if self.channels_last and moved.ndim == 4:
            moved = moved.contiguous(memory_format=torch.channels_last)
        return moved


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    # AVX-512 without bf16 instructions emulates them, slower than float32
    has_bf16 = (
        getattr(torch.cpu, "_is_amx_tile_supported", bool)() or getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    )
    return bool(has_bf16)
