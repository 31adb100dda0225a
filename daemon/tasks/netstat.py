"""What a container's own network has carried: proc_pid_net(5), net/dev; nothing is entered."""

import os


def of_process(pid: int) -> dict[str, int] | None:
    """{rx_bytes, tx_bytes} of all links but lo; None with the host's network, or of no process."""
    try:
        if os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), os.stat("/proc/self/ns/net")):
            return None
        with open(f"/proc/{pid}/net/dev", encoding="ascii", errors="replace") as file:
            lines = file.read(1 << 16).splitlines()[2:]
    except OSError:
        return None
    received = sent = 0
    for line in lines:
        name, colon, rest = line.partition(":")
        words = rest.split()
        if colon and name.strip() != "lo" and len(words) >= 9:
            received += int(words[0])
            sent += int(words[8])
    return {"rx_bytes": received, "tx_bytes": sent}
