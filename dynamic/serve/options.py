"""Options of a server."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from dynamic.policies.errors import SettingError
from dynamic.policies.validation.fields import short
from dynamic.policies.validation.numbers import plain

_MOST_PORT = 65_535
_MOST = 1e12  # of a limit: what is above means none
_OPEN_BODIES = 16  # of the largest size, that a server holds at once
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a server listens, and what it accepts.

    Args:
        host: The address to listen on. Others than this machine reach it only where it is another than 127.0.0.1.
        port: The port of HTTP. 0: any that is free.
        grpc_port: The port of gRPC. 0: any that is free. None: no gRPC.
        name: The name of the model. None: that of the bundle's folder.
        workers: How many requests are answered at once.
        queue: How many requests may wait. One more and the one that has waited longest is dropped.
        max_batch: Rows that one request may have.
        max_request_mb: Megabytes (10^6 bytes) that the body of a request may have. All bodies that a server holds may
            have 16 times as much together.
        max_json_mb: Megabytes of it that may be JSON, which takes 25 times its size in memory. Binary tensor data and
            files as the body do not count.
        max_megapixels: Millions of pixels that the images of one request may have together.
        timeout_ms: Milliseconds after which a request is not answered any more, where it has no timeout of its own.
            None: no limit.
        drain_s: Seconds that requests get to end once the server is told to end.
        token: What a client has to send as `Authorization: Bearer TOKEN`. None: anybody may ask.
        open_metrics: `/metrics` needs no token.
        log_json: Write one line of JSON to stderr for each request.

    Raises:
        SettingError: A value is out of range.

    Example:
        >>> options = dynamic.serve.ServeOptions(port=0, max_batch=16)
        >>> options.host, options.max_batch, options.queue
        ('127.0.0.1', 16, 64)
    """

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    name: str | None = None
    workers: int = 2
    queue: int = 64
    max_batch: int = 64
    max_request_mb: float = 16.0
    max_json_mb: float = 2.0
    max_megapixels: float = 50.0
    timeout_ms: float | None = None
    drain_s: float = 20.0
    token: str | None = field(default=None, repr=False)
    open_metrics: bool = False
    log_json: bool = False

    @property
    def url_host(self) -> str:
        """The host as it stands before a port: an IPv6 address has brackets there."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def __post_init__(self) -> None:
        for name in ("workers", "queue", "max_batch"):
            self._check_whole(name, 1, math.inf)
        self._check_whole("port", 0, _MOST_PORT)
        if self.grpc_port is not None:
            self._check_whole("grpc_port", 0, _MOST_PORT)
        for name in ("max_request_mb", "max_json_mb", "max_megapixels", "timeout_ms"):
            self._check_number(name, above=True)
        self._check_number("drain_s", above=False)
        if not isinstance(self.host, str) or not self.host:
            raise SettingError(f"host={self.host!r} must be an address, such as 127.0.0.1, or 0.0.0.0 for all")
        if self.name is not None:
            checked_name(self.name)
        if self.token is not None and not _is_token(self.token):
            raise SettingError(
                "the token is empty, not ASCII, or has spaces: give one, such as that of `openssl rand -hex 32`"
            )

    @property
    def most_bytes(self) -> int:
        """Bytes that the body of a request may have."""
        return int(self.max_request_mb * 1e6)

    @property
    def most_json_bytes(self) -> int:
        """Bytes of it that may be JSON."""
        return int(self.max_json_mb * 1e6)

    @property
    def most_open_bytes(self) -> int:
        """Bytes that all bodies which the server holds may have together."""
        return _OPEN_BODIES * self.most_bytes

    def _check_whole(self, name: str, low: int, high: float) -> None:
        value = plain(getattr(self, name))
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            most = "" if high == math.inf else f" and at most {high}"
            raise SettingError(f"{name}={value!r} must be a whole number of at least {low}{most}")
        object.__setattr__(self, name, value)

    def _check_number(self, name: str, above: bool) -> None:
        value = plain(getattr(self, name))
        if value is None and name == "timeout_ms":
            return
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= _MOST or (above and value == 0):
            least = "above" if above else "of at least"
            raise SettingError(f"{name}={short(value)} must be a number {least} 0 and at most {_MOST:g}")
        object.__setattr__(self, name, value)


def checked_name(name: object) -> str:
    """The name of a model.

    Args:
        name: What may be one.

    Returns:
        The name.

    Raises:
        SettingError: It is empty, has a slash, or means a folder.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name:
        raise SettingError(
            f"name={name!r} must be a word without a slash: it is a part of addresses. Give one with --name, or "
            "name= in Python"
        )
    return name


def _is_token(token: object) -> bool:
    return isinstance(token, str) and token.isascii() and bool(token) and not any(map(str.isspace, token))


def token_from(variable: str | None, file: Path | None) -> str | None:
    """The token that clients have to send.

    Args:
        variable: The value of the environment variable. None: it is not set.
        file: A file with the token.

    Returns:
        The token. None: there is none.

    Raises:
        SettingError: Both are given, the file does not read, or the token is empty.
    """
    if file is None:
        return None if variable is None else variable.strip()  # clients' tokens are stripped too
    if variable is not None:
        raise SettingError(f"a token is given twice, by DYNAMIC_SERVE_TOKEN and by --token-file {file}: give one")
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"--token-file {file} does not read ({error}): give a file with one line of ASCII"
        ) from error
    if not token:
        raise SettingError(f"--token-file {file} is empty: give a file with one line of ASCII")
    return token
