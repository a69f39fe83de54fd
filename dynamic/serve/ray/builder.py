"""An application from a file of Ray Serve, as `serve deploy` and KubeRay read it."""

import os
from collections.abc import Mapping
from typing import Any

from ray import serve

from dynamic.policies.budget import Budget
from dynamic.policies.errors import SettingError
from dynamic.serve.options import ServeOptions
from dynamic.serve.ray.application import application

_VARIABLE = "token_variable"


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application of the `args` of a file, whose `import_path` is `dynamic.serve.ray.builder:build`.

    Args:
        args: `bundle`, and what else `application` takes. `budget` and `options` are objects with the fields of
            `dynamic.Budget` and `dynamic.serve.ServeOptions`. `token_variable` of `options` names the variable of the
            environment that has the token, so that no file has it.

    Returns:
        The application.

    Raises:
        SettingError: There is no bundle, a field is unknown or out of range, or the variable is not set.
        BudgetError: A limit is unknown or out of range.
        BundleError: There is no bundle in the folder.

    Example:
        >>> from dynamic.serve.ray.builder import build
        >>> app = build({"bundle": "shelf", "budget": {"latency_ms": 50}, "cut": None})
    """
    fields = dict(args)
    bundle, budget, options = fields.pop("bundle", None), fields.pop("budget", None), fields.pop("options", None)
    if not isinstance(bundle, str):
        raise SettingError(f"args has bundle={bundle!r}: give the path of a bundle's folder")
    for name, value in (("budget", budget), ("options", options)):
        if value is not None and not isinstance(value, Mapping):
            raise SettingError(f"args has {name}={value!r:.80}: give an object with its fields")
    try:
        return application(
            bundle,
            None if budget is None else Budget.from_json(budget),
            options=None if options is None else ServeOptions(**_with_token(options)),
            **fields,
        )
    except TypeError as error:
        raise SettingError(f"args do not read: {error}") from error


def _with_token(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options, with the token that a variable of the environment has."""
    fields = dict(options)
    variable = fields.pop(_VARIABLE, None)
    if variable is None:
        return fields
    token = os.environ.get(str(variable))
    if not token:
        raise SettingError(f"{_VARIABLE}={variable!r} is not set: set it, or leave it out where anybody may ask")
    return fields | {"token": token}
