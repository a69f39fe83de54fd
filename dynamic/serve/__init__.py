"""A server of one bundle: the Open Inference Protocol over HTTP and gRPC. It needs the extra `serve`."""

from dynamic.extras import with_remedy as _with_remedy

try:
    from dynamic.serve.options import ServeOptions
    from dynamic.serve.server import Server
except ModuleNotFoundError as error:
    raise _with_remedy(error, "dynamic.serve") from error

__all__ = ["ServeOptions", "Server"]
