"""Event topics, containerd's own, and the fields each body has.

A body is a map of plain values. `container_id` is in all of /tasks; the rest:

    /tasks/create       pid, bundle, terminal, stdin, stdout, stderr
    /tasks/start        pid
    /tasks/exit         exec_id ("" for init), pid, exit_status, exited_at, cause
    /tasks/delete       pid, exit_status, exited_at
    /tasks/exec-added   exec_id
    /tasks/exec-started exec_id, pid
    /tasks/paused, /tasks/resumed, /tasks/oom
    /tasks/checkpointed checkpoint: the directory

`id` is in all of /containers, of which containerd does not have the last three:

    /containers/create          image, runtime; of containerd's clients runtime_options
    /containers/update          image, labels, snapshot_key
    /containers/restart         count, exit_status, delay_ms, error: it is to be started again
    /containers/health-status   status, failing_streak
    /containers/rename          old: the name before

`name` is in all of /images and /namespaces, and `labels` in those but the deletes; `key` and
`snapshotter` in all of /snapshot, with `parent` of what is prepared and `name` of what is
committed; `digest` in all of /content, with the `size` of what is created.

CLOSED is between shim and manager alone: all is cleaned up and the shim ends once this is
acknowledged; `error` tells why a create failed, "" otherwise.
"""

CREATE = "/tasks/create"
START = "/tasks/start"
EXIT = "/tasks/exit"
DELETE = "/tasks/delete"
EXEC_ADDED = "/tasks/exec-added"
EXEC_STARTED = "/tasks/exec-started"
PAUSED = "/tasks/paused"
RESUMED = "/tasks/resumed"
OOM = "/tasks/oom"
CHECKPOINTED = "/tasks/checkpointed"
CONTAINER_CREATE = "/containers/create"
CONTAINER_UPDATE = "/containers/update"
CONTAINER_DELETE = "/containers/delete"
CONTAINER_RESTART = "/containers/restart"
CONTAINER_RENAME = "/containers/rename"
CONTAINER_HEALTH = "/containers/health-status"
IMAGE_CREATE = "/images/create"
IMAGE_UPDATE = "/images/update"
IMAGE_DELETE = "/images/delete"
NAMESPACE_CREATE = "/namespaces/create"
NAMESPACE_UPDATE = "/namespaces/update"
NAMESPACE_DELETE = "/namespaces/delete"
CONTENT_CREATE = "/content/create"
CONTENT_DELETE = "/content/delete"
SNAPSHOT_PREPARE = "/snapshot/prepare"
SNAPSHOT_COMMIT = "/snapshot/commit"
SNAPSHOT_REMOVE = "/snapshot/remove"
CLOSED = "shim/closed"
