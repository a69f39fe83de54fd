"""Fixtures of the tests of storage."""

from support.storage_cases import one as one
from support.storage_cases import other as other
from support.storage_cases import way as way
