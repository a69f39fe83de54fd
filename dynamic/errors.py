"""The exception tree (see `dynamic.policies.errors`), under the name users look for it."""

from dynamic.policies.errors import (
    BudgetError,
    BundleError,
    CalibrationError,
    ClosedError,
    CorruptError,
    DiskError,
    DynamicError,
    DynamicWarning,
    EngineError,
    ExitError,
    InputError,
    LayoutError,
    SchemaError,
    ShedError,
    TraceError,
    WrapError,
)

__all__ = [
    "BudgetError",
    "BundleError",
    "CalibrationError",
    "ClosedError",
    "CorruptError",
    "DiskError",
    "DynamicError",
    "DynamicWarning",
    "EngineError",
    "ExitError",
    "InputError",
    "LayoutError",
    "SchemaError",
    "ShedError",
    "TraceError",
    "WrapError",
]
