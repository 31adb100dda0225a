"""Kernel files that a container must not read or must not write, unless it is privileged.

The lists hold all of what the newest containerd and Docker name. A masked path that does not exist
is skipped by the runtime, so the lists need not know the kernel's configuration.
"""

from collections.abc import Iterable

MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",  # Docker: timing of the host's devices (GHSA-6fw5-f8r9-fgfm)
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",  # energy counters (GHSA-jq35-85cj-fj4p)
    "/sys/firmware",
)

READONLY = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)


def masked(thermal_throttle_dirs: Iterable[str] = ()) -> list[str]:
    """Return `linux.maskedPaths`, with the host's /sys/devices/system/cpu/cpu*/thermal_throttle.

    Those exist per processor and on bare metal only; naming absent ones would cost the runtime a
    failed mount call for each processor.
    """
    return [*MASKED, *sorted(thermal_throttle_dirs)]


def readonly() -> list[str]:
    """Return `linux.readonlyPaths`."""
    return list(READONLY)
