from __future__ import annotations

import pytest

from .sessions import Begin, asynchronous, blocking


@pytest.fixture(params=[blocking, asynchronous])
def begin(request: pytest.FixtureRequest) -> Begin:
    return request.param  # type: ignore[no-any-return]
