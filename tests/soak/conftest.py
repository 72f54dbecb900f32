"""The kernels of tests/real, for the longer tests."""

from __future__ import annotations

from tests.real.conftest import arm64_6_12 as arm64_6_12
from tests.real.conftest import copy_of as copy_of
from tests.real.conftest import linux_6_1 as linux_6_1
from tests.real.conftest import linux_6_12 as linux_6_12
from tests.real.conftest import x86_64_6_1 as x86_64_6_1
from tests.real.conftest import x86_64_6_12 as x86_64_6_12
from tests.real.conftest import x86_64_6_12_debug as x86_64_6_12_debug
from tests.real.conftest import x86_64_6_12_full as x86_64_6_12_full
