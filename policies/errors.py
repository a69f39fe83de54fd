"""Everything this library raises on a user's mistake, and the one warning it gives.

```
DynamicError
├── WrapError            the network cannot be cut
│   ├── TraceError       neither tracer captures it
│   ├── ExitError        an exit that does not exist or carries no tensor
│   └── LayoutError      where the channels are cannot be told: name it
├── InputError           an array of the wrong shape, dtype or count  (also a ValueError)
├── SettingError         an argument or option out of its range       (also a ValueError)
│   └── BudgetError      a budget that is out of range, or cannot be kept here
├── CalibrationError     records from which nothing can be learned
├── BundleError          a bundle or checkpoint that cannot be trusted
│   ├── CorruptError     missing, truncated or altered
│   ├── SchemaError      written by a newer version
│   └── DiskError        a disk that is full, or refuses  (also an OSError)
├── EngineError          an engine that is not installed, or failed
├── ShedError            a request given up because too many wait
└── ClosedError          a runtime used after it was closed
```
Every message names the value, what was expected, and the remedy.
"""


class DynamicError(Exception):
    """Root of all errors of this library."""


class WrapError(DynamicError):
    """The network cannot be cut into stages."""


class TraceError(WrapError):
    """Neither torch.fx nor torch.export captures the network."""


class ExitError(WrapError):
    """An exit that does not exist, comes twice, or has no tensor to read."""


class LayoutError(WrapError):
    """The channel dimension of a feature cannot be told apart; the user has to name it."""


class InputError(DynamicError, ValueError):
    """An array or tensor of the wrong shape, dtype or class count."""


class SettingError(DynamicError, ValueError):
    """An argument or option outside its range, or one that does not go with another."""


class BudgetError(SettingError):
    """A budget with a limit outside its range, or one about which this device can say nothing."""


class CalibrationError(DynamicError):
    """Calibration data from which nothing can be learned."""


class BundleError(DynamicError):
    """A bundle or checkpoint that cannot be trusted."""


class CorruptError(BundleError):
    """A file that is missing, cut short or altered."""


class SchemaError(BundleError):
    """A file written by a newer version of this library."""


class DiskError(BundleError, OSError):
    """A disk that is full, or that refuses to be written to."""


class EngineError(DynamicError):
    """An engine that is not installed, or failed while running."""


class ShedError(DynamicError):
    """A request that was given up, unanswered, for newer ones: more arrive than are answered."""


class ClosedError(DynamicError):
    """A runtime that was closed and is used."""


class DynamicWarning(UserWarning):
    """Something was decided for the user that the user may want to know."""
