"""The errors that this library raises on a user's mistake, and its one warning.

```
DynamicError
├── WrapError            the network cannot be cut
│   ├── TraceError       neither tracer captures it
│   ├── ExitError        an exit that does not exist or carries no tensor
│   └── LayoutError      the channel dimension is ambiguous: name it
├── InputError           an array of the wrong shape, dtype or count  (also a ValueError)
├── SettingError         an argument or option out of its range       (also a ValueError)
│   └── BudgetError      a limit out of range, or one that cannot be checked here
├── CalibrationError     records that do not suffice for a calibration
├── BundleError          a bundle or checkpoint that does not pass its checks
│   ├── CorruptError     missing, truncated or altered
│   ├── SchemaError      written by a newer version
│   └── DiskError        a disk that is full, or refuses a write  (also an OSError)
├── EngineError          an engine that is not installed, or failed
├── ShedError            a request that was dropped because too many wait
└── ClosedError          a runtime that is used after it was closed
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
    """An exit that does not exist, is given twice, or has no tensor to read."""


class LayoutError(WrapError):
    """The channel dimension of a feature is ambiguous. The user has to name it."""


class InputError(DynamicError, ValueError):
    """An array or tensor of the wrong shape, dtype or class count."""


class SettingError(DynamicError, ValueError):
    """An argument or option outside its range, or one that excludes another."""


class BudgetError(SettingError):
    """A budget with a limit outside its range, or one that cannot be checked on this device."""


class CalibrationError(DynamicError):
    """Calibration data that do not suffice for a calibration."""


class BundleError(DynamicError):
    """A bundle or checkpoint that does not pass its checks."""


class CorruptError(BundleError):
    """A file that is missing, cut short or altered."""


class SchemaError(BundleError):
    """A file written by a newer version of this library."""


class DiskError(BundleError, OSError):
    """A disk that is full, or that refuses a write."""


class EngineError(DynamicError):
    """An engine that is not installed, or failed while running."""


class ShedError(DynamicError):
    """A request that was dropped without an answer, because more requests arrive than are answered."""


class ClosedError(DynamicError):
    """A runtime that is used after it was closed."""


class DynamicWarning(UserWarning):
    """A decision that was made for the user and that the user may want to change."""
