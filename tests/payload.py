"""What hostile files carry in the tests of safety: it leaves a trace where it is run."""

from __future__ import annotations

import os

RAN = "ran"


class Payload:
    """Makes the folder `ran` in the current folder when unpickled."""

    def __reduce__(self):
        return (os.mkdir, (RAN,))
