"""A bucket whose server does not know the access key."""

from __future__ import annotations

import pytest

from trimtab.errors import ConfigError
from trimtab_services.weights.opening import open_files

from .s3 import serving


def test_credentials_that_the_server_refuses_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", "0")  # of the server: from the first call on it asks for a key
    with serving() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError) as refused:
            open_files("s3://rlhf/weights")
    why = "refused to these credentials (403): key or secret is wrong, or their user may not list it"
    assert refused.value.message == f"store: s3://rlhf/weights: bucket rlhf: {why}"
