"""What the manager asks of a shim: service "task", one shim per container.

    create       the order below -> {pid}; travels with the fork, not over the socket
    start        {} -> {}
    kill         {exec_id, signal, all} -> {}        SIGKILL to a paused task thaws it
    pause        {} -> {}
    resume       {} -> {}
    exec         {exec_id, process, terminal, stdin, stdout, stderr, rows, cols} -> {pid}
                 `process`: path of the OCI process that the manager wrote for `runc exec`
    attach       {exec_id, stdin, stdout, stderr, may_drop} -> {terminal}
                 may_drop: a slow reader loses output; in the first releases the container waits
    resize       {exec_id, rows, cols} -> {}
    close_stdin  {exec_id} -> {}
    update       {resources} -> {}                   `resources`: path of OCI linux.resources
    checkpoint   {image, leave_running, flags} -> {}    CRIU's files go to the directory `image`
                                                 flags: the runtime's; the first release has none
    release_output  {} -> {}                         what was written to FIFOs that nobody reads is
                                                     not waited with any longer
    end          {} -> {}                            SIGKILL to init, whatever its state

UNHEARD_OF is a method that no shim has: its refusal comes behind all events that were sent before.

The order of a create (a map):

    incarnation     16 hex digits, the shim's routing id, never used twice
    generation      of the manager that gave the order
    ident           id of the create request that the shim answers
    namespace, id, instance
    claim           file that must be renamed to `record` as the first act, else the shim ends
    record          <bundle>/shim.json
    bundle          directory with config.json and rootfs/
    socket          the manager's socket for shims
    console         short path for runc's console socket, "" without a terminal
    exit_record     where the exit is written before it is announced
    runc, runc_root runtime binary, and its --root
    shim_starts     whether the runtime need not be run for a start where there is nothing but to
                    let init go; may be missing: it is run
    runtime_deletes whether the runtime has to be run for a delete, however little there is to do
    mounts          [[type, source, [options]]] for rootfs
    cgroup          below each hierarchy's root; may be missing: the instance's own
    runtime_flags, create_flags   words for each call of the runtime, for its create; may be
                    missing
    io_uid, io_gid  owner of the container's pipes; may be missing
    logger          argv of a program that reads stdout as 3 and stderr as 4 and closes 5, or
                    writes to it, when it is ready; may be missing. An exec may have one too
    logger_for      [namespace, id] in its environment
    terminal, stdin_open, rows, cols
    stdin, stdout, stderr   URIs, see daemon_api
    log             {dir, max_bytes, max_files, send} or null
                    send, which may be missing: {name, format, target, tag, facility, fields,
                    stream}: each line is a datagram too, to a path or [address, port], in the
                    format journald, rfc5424 or rfc3164; with `stream` a frame over TCP
    io_policy       "drop" or "block": what a FIFO with no reader does once its spool is full
    restore         directory of a checkpoint that the container goes on from, or ""; may be missing
    timeout_ns      for each call of the runtime, or null for the default

FEATURES goes into a shim's hello, in a field that is reserved: nobody reads it.
"""

import signal

SERVICE = "task"
UNHEARD_OF = "all-told"
FEATURES = ["exec", "attach", "log-chunks"]

# To the process of a shim that has a manager no more: one listens now. A shim of a version that
# does not know it is not disturbed (the kernel's default), and connects when its pause is over.
LISTENING = int(signal.SIGURG)

# The manager's spawner obeys these packets on its SOCK_SEQPACKET socket: a msgpack map
# {kind: "shim", ident, order: bytes, the order packed} or {kind: "worker", ident} with the worker's
# control socket attached; it answers {ident, pid, start} with the child's pidfd attached, or
# {ident, error}. Its first packet, {ident: LOADED}, says that it has loaded. Requests count from 1.
# A spawner that outlives its manager says as its last {ident: STAYS} (lighter.shim.succession). The
# next manager's first packet is then what kind it wants; the spawner answers SAME, and is sent one
# byte with the manager's outputs and locks attached. From its LOADED on all is as above.
MAX_PACKET = 128 * 1024
LOADED = 0
STAYS = -1
SAME = b"same"
