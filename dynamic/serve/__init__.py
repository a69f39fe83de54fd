"""A server of one bundle: the Open Inference Protocol over HTTP and gRPC. It needs the extra `serve`.

`application` puts a bundle into Ray Serve. It needs the extra `ray`, and is loaded on first use.
"""

from typing import TYPE_CHECKING

from dynamic.extras import with_remedy as _with_remedy

try:
    from dynamic.serve.options import ServeOptions
    from dynamic.serve.server import Server
except ModuleNotFoundError as error:
    raise _with_remedy(error, "dynamic.serve") from error

if TYPE_CHECKING:
    from dynamic.serve.ray.application import application

__all__ = ["ServeOptions", "Server", "application"]


def __getattr__(name: str) -> object:
    if name != "application":
        raise AttributeError(f"module 'dynamic.serve' has no attribute {name!r}")
    try:
        from dynamic.serve.ray.application import application
    except ModuleNotFoundError as error:
        raise _with_remedy(error, f"dynamic.serve.{name}") from error
    globals()[name] = application
    return application
