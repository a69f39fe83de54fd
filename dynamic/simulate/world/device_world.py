"""The state of a simulated device: its battery, its temperature, and its clock, which falls when it is too warm."""

import math

from dynamic.simulate.device_models import Device

GOVERNED_EVERY_S = 1.0  # how often the kernel looks at the temperature: an assumption
# active power against clock: between 1 (voltage as it was) and 3 (voltage in proportion), an assumption
POWER_EXPONENT = 2.0


class World:
    """Battery, temperature and clock up to `time_s`, updated by `settle` and `govern`.

    Energies are in millijoules (1 mWh is 3,600). `idle_mj`, `screen_mj` and `inference_mj` were used so far. `left_mj`
    is in the battery (None: no battery). `temperature_c` follows the first-order model R C dT/dt = ambient + R P - T.
    `frequency` is the ratio to the full clock, `active_mw` the power of inference at it.

    Args:
        device: The figures of the device.
        battery: Charge at the start, 0 to 1.
        ambient_c: Ambient temperature in degrees Celsius.
        temperature_c: Temperature at the start. None: that of the idle device after a long time.
        screen: Whether the screen is on.
    """

    def __init__(
        self, device: Device, battery: float, ambient_c: float, temperature_c: float | None, screen: bool
    ) -> None:
        self._device = device
        self._screen_mw = device.screen_mw if screen else 0.0
        self._base_mw = device.idle_mw + self._screen_mw
        self.full_mj = None if device.battery_mwh is None else device.battery_mwh * 3600
        self.left_mj = None if self.full_mj is None else battery * self.full_mj
        self.idle_mj = self.screen_mj = self.inference_mj = 0.0
        self.time_s = self.throttled_s = 0.0
        self.ambient_c, self.plugged, self.empty = ambient_c, False, False
        self.power_mw = self._base_mw
        self._resistance = device.resistance_c_per_w
        if self._resistance is None or device.capacity_j_per_c is None:
            self.temperature_c, self._tau_s = None, math.inf
        else:
            settled = ambient_c + self._resistance * self._base_mw / 1e3
            self.temperature_c = settled if temperature_c is None else float(temperature_c)
            self._tau_s = self._resistance * device.capacity_j_per_c
        self.hottest_c = self._before_c = self.temperature_c
        self._step, self._next_govern_s = 0, 0.0
        self.frequency, self.active_mw = 1.0, device.active_mw

    @property
    def battery(self) -> float | None:
        """Charge, 0 to 1."""
        return None if self.left_mj is None or self.full_mj is None else self.left_mj / self.full_mj

    @property
    def used_mj(self) -> float:
        """Energy of the whole device so far."""
        return self.idle_mj + self.screen_mj + self.inference_mj

    @property
    def nearly_empty(self) -> bool:
        """Whether the battery could run out within a second: then every event is settled by itself."""
        return self.left_mj is not None and not self.plugged and self.left_mj < self._base_mw + self._device.active_mw

    def settle(self, now_s: float, inference_mj: float) -> None:
        """Update to a time. Where the battery runs out before, `empty` is True and `time_s` is that time.

        Args:
            now_s: Time in seconds.
            inference_mj: Energy of inference since the last update, used at an even rate.
        """
        for_s = now_s - self.time_s
        if for_s <= 0 or self.empty:
            return
        drawn_mj = self._base_mw * for_s + inference_mj
        if self.left_mj is not None and self.full_mj is not None:
            if self.plugged:
                self.left_mj = min(self.full_mj, self.left_mj + self._device.charging_mw * for_s)
            elif drawn_mj >= self.left_mj:
                share = self.left_mj / drawn_mj
                for_s, inference_mj, drawn_mj = for_s * share, inference_mj * share, self.left_mj
                self.left_mj, self.empty = 0.0, True
                now_s = self.time_s + for_s
            else:
                self.left_mj -= drawn_mj
        self.time_s = now_s
        self.idle_mj += self._device.idle_mw * for_s
        self.screen_mj += self._screen_mw * for_s
        self.inference_mj += inference_mj
        if self._step:
            self.throttled_s += for_s
        if for_s > 0:
            self.power_mw = drawn_mj / for_s
        if self.temperature_c is not None and self._resistance is not None and self.hottest_c is not None:
            end_c = self.ambient_c + self._resistance * self.power_mw / 1e3
            self.temperature_c = end_c + (self.temperature_c - end_c) * math.exp(-for_s / self._tau_s)
            self.hottest_c = max(self.hottest_c, self.temperature_c)

    def govern(self) -> None:
        """One step down while too warm and not cooling, one up once cool enough, as Linux's step_wise governor.

        https://tangled.org/tjh.dev/kernel/blob/v6.7/drivers/thermal/gov_step_wise.c
        """
        limit_c, now_c = self._device.throttle_c, self.temperature_c
        if limit_c is None or now_c is None or self._before_c is None or self.time_s < self._next_govern_s:
            return
        self._next_govern_s = self.time_s + GOVERNED_EVERY_S * (1 - 1e-9)
        steps = self._device.frequency_steps
        if now_c >= limit_c and now_c >= self._before_c:
            self._step = min(self._step + 1, len(steps) - 1)
        elif now_c < limit_c - self._device.hysteresis_c and now_c <= self._before_c:
            self._step = max(self._step - 1, 0)
        self._before_c = now_c
        self.frequency = steps[self._step]
        self.active_mw = self._device.active_mw * self.frequency**POWER_EXPONENT
