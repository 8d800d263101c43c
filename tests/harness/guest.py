"""Where tests run: on the host's own kernel, or on another one in a machine of tests/vm/boot.sh."""

import os

import pytest

#: The release of the machine's kernel; "" on the host's own.
RELEASE = os.environ.get("QOS_GUEST_RELEASE", "")

#: For what sends tens of thousands of packets a second. Measured: one flow of full packets came to 47 Mbit/s there.
needs_speed = pytest.mark.skipif(
    "QOS_GUEST_EMULATED" in os.environ,
    reason="an emulated processor does not send so fast: it runs on the host, and where there is KVM",
)
