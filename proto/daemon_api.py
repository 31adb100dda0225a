"""The manager's services as its own clients see them: names, fields, meanings.

Every request travels with the metadata key `namespace`. In those of Docker and Kubernetes, what ends or
changes something wants the key `force` too. Times are nanoseconds since the epoch,
`null` when there is none. Signals are numbers. A stdio value is "" (nothing), an absolute path
of a FIFO or pipe (`/proc/<pid of the caller>/fd/<n>` for a pipe that only the caller holds), or a
`file://` URI. A name with `(stream)` answers with items and then an end that carries the result.

    version.get         {} -> {name, version, revision, uuid, generation, started_at, instance, root, state}
    namespaces.list     {} -> {namespaces: [{name, labels, created_at}]}
    namespaces.create   {name, labels} -> {}
    namespaces.delete   {name, cgroup} -> {}            refused while it holds anything, saying what; cgroup: that
                        of its containers too
    namespaces.label    {name, labels} -> {}            "" as value removes a label
    images.import       (stream) {source, base_name, index_name, digests, skip_digest_for_named, platforms,
                        all_platforms, unpack, compress_blobs, snapshotter} -> items {status, ref, digest,
                        done_bytes, total_bytes}, end {images: [name]}
                        status: reading, importing, moved (a name that stood for `digest`),
                        unpacking, done
    images.export       (stream) {target, names, platforms, all_platforms, skip_manifest_json,
                        skip_non_distributable} -> items as of import, end {size_bytes}
                        target: a file or pipe that the caller has open for writing
    images.convert      (stream) {name, target, oci, compression, platforms, all_platforms} -> items as of
                        import, end {image, digest}     compression: "" (as it is), none, gzip, zstd
    images.pull         (stream) {name, platform | platforms, all_platforms, unpack, all_metadata, metadata_only,
                        snapshotter, labels, at_once, access} -> items {status, ref, digest, kind, done_bytes, total_bytes}, end
                        {image, digest, downloaded_bytes, download_s, unpack_s}
                        status: resolving, resolved, unpacking, done; of a piece (kind index, manifest,
                        config, layer): waiting, downloading, uploading, exists, done
    images.push         (stream) {name, local, platform, digest, at_once, access} -> items as of pull,
                        end {media_type, digest, size}  digest: of one document of the image
                        access: {username, secret, identity_token, plain_http, skip_verify, ca, cert,
                        key, hosts_dir, realms}         paths as the manager sees them; never logged;
                        realms: hosts that may be given the credential for a token
    registry.login      {server, access} -> {host, asked}       permission-denied with the detail `realm` when
                        the credential is wanted at that host, which is another one
                        asked: whether the host wanted to know who it is
    registry.test       (stream) {name, access} -> items {kind: "host", url, source, capabilities, ca,
                        client_certificates, skip_verify, tls_source, credential, credential_source,
                        headers, proxy} {kind: "request", method, url, status, sent, note} {kind:
                        "result", host, digest, error}, end {name, reached}     no secret is in them
    images.list         {cursor, limit, filters} -> {images: [{name, media_type, digest, size_bytes,
                        platforms, labels, created_at, updated_at, problem}], next}
    images.get          {name} -> {image, manifest, config}
    images.tree         {name, content} -> {name, target: node}
                        node: {media_type, digest, size_bytes, platform, present, content, children: [node]}
    images.check        {cursor, limit, filters, snapshotter} -> {images: [{name, media_type, digest, status,
                        required, present, required_bytes, present_bytes, unpacked, problem}], next}
                        status: complete, incomplete, unavailable
    images.usage        {name, snapshotter} -> {snapshots: [{key, size_bytes, inodes}]}     the top one first
    images.tag          {source, name, force} -> {}
    images.label        {name, labels, replace_all} -> {labels}         "" as value removes a label
    images.mount        {name, target, place, rw, platform, snapshotter} -> {chain_id}
                        target: a directory's path; place: the same one, which the caller has open
    images.unmount      {target, remove} -> {}          remove: what was written there too
    images.delete       {name} -> {}
    content.list        {cursor, limit, filters} -> {content: [{digest, size_bytes, labels,
                        created_at, updated_at}], next}
    content.get         {digest} -> {content: {…as listed}}
    content.read        (stream) {digest, offset} -> items {data}, end {}
    content.ingest      (stream) {ref, source, expected_bytes, expected_digest, labels, lease}
                        -> items {offset}, end {digest, existed}    source: as of images.import; 0 and
                        "" expect nothing; lease: its id, "" for none; a ref is one writer's at a time,
                        and one that was left goes on where it stopped when expected_digest is given
    content.push_object (stream) {name, digest, media_type, access} -> items and end as of images.push
                        one blob or document alone, a document under the name's tag
    content.active      {} -> {ingests: [{ref, offset, total_bytes, expected, started_at, updated_at}]}
    content.abort       {ref} -> {}
    content.label       {digest, labels} -> {content}   "" as value removes a label
    content.delete      {digest} -> {}
    content.why         {name, snapshotter} -> {kept: [{what, chains: [[{kind, name, how}]]}]}
                        name: a digest, or a snapshot's key; a chain goes from a root to it
    content.prune_references  {dry_run} -> {pruned: [{digest, label}]}
    leases.create       {id, labels} -> {lease: {id, labels, created_at, expires_at}}   id "": made up
    leases.list         {filters} -> {leases: [{…as made}]}
    leases.delete       {id, sync} -> {}                sync: collected when it returns
    leases.add_resource, leases.delete_resource  {id, type, resource} -> {}
    leases.resources    {id} -> {resources: [{type, resource}]}    type: content, images, ingests or
                        snapshots/<snapshotter>
    snapshots.list      {snapshotter, cursor, limit} -> {snapshots: [{key, parent, kind, labels, created_at,
                        updated_at}], next}             snapshotter "" everywhere: the default one
    snapshots.get       {snapshotter, key} -> {snapshot: {…as listed}}
    snapshots.usage     {snapshotter, key} -> {size_bytes, inodes}      without its parents
    snapshots.prepare, snapshots.view  {snapshotter, key, parent, labels} -> {mounts}
    snapshots.mounts    {snapshotter, key} -> {mounts: [{type, source, options}]}
    snapshots.commit    {snapshotter, name, key, labels} -> {}
    snapshots.label     {snapshotter, key, labels} -> {snapshot}
    snapshots.delete    {snapshotter, key} -> {}        refused while a container or snapshot needs it
    snapshots.diff      {snapshotter, lower, parent, key, target, compression} -> {diff_id, digest, size_bytes,
                        entries}                        writes the layer that makes `key` of `lower`, or with
                        `parent` of its own; target: a descriptor of the caller; compression "", gzip, zstd
    snapshots.unpack    (stream) {snapshotter, image} -> items as images.import's, end {key}
                        image: its name or its manifest's digest
    containers.create   {id, image, args, entrypoint, env, cwd, user, terminal, mounts: [{type, source, destination,
                        options}], net_host, read_only, hostname, labels, snapshotter, privileged, without_host_devices,
                        cap_add, cap_drop, seccomp, allow_new_privs, runtime, with_ns: {kind: path},
                        auto_remove, stdin_open, stop_signal, log: {driver, max_size, max_file, uri},
                        restart: no, on-failure[:n], always, unless-stopped; stop_timeout_s (-1: none),
                        health: {test, retries, interval_s, timeout_s, start_period_s, start_interval_s},
                        annotations, sysctls, groups: [name or number], rlimits: [{type, soft, hard}],
                        oom_score_adj, shm_bytes, limits: {as daemon/oci/limits}, devices: [{path,
                        destination, access}], namespaces: {kind: own, host or container:id},
                        volumes: [as mounts],           a mount of type "volume" names one, "" makes one
                        network: {networks: [name], cni, container, ports: [{host_ip, host_port,
                        container_port, protocol}], ip, ip6, mac, dns, dns_search, dns_options,
                        add_hosts: [[name, address]]}, keep_entrypoint, as_docker}
                        -> {id, warnings: [text]}       id null: one is made up
                        rootfs: a directory in place of the image; spec: a whole OCI spec, which
                        most of the rest then has no part in; cgroup null: the instance's own place
                        seccomp: "default", "unconfined" or the profile's JSON text
                        args take the place of the image's entrypoint and command; keep_entrypoint: of
                        its command alone; entrypoint, when not null, takes the place of both
                        as_docker: no tmpfs on /run, the cgroups shown, on v2 a namespace of them
    containers.list     {cursor, limit, filters} -> {containers: [{id, image, runtime, snapshotter, snapshot_key,
                        labels, created_at, updated_at}], next}
    containers.get      {id} -> {container: {…as listed, spec: text, options, networks, ports, restart: {policy,
                        max_retries, count, stopped, due_at, error}, health: {status, failing_streak,
                        log: [{started_at, ended_at, exit_code, output}]} or null}}
    containers.label    {id, labels} -> {container}     "" as value removes a label
    containers.start    {id} -> {pid}                   an ended task makes way; one that runs is no error
    containers.restart  {id, timeout_s, signal} -> {pid}    stopped as by tasks.stop, then started
    containers.update   {id, limits, restart} -> {}     limits as of containers.create, at once and for later tasks
    containers.rename   {id, name} -> {}                refused while it has a task that runs
    containers.resolve  {ref} -> {id}                   exact id, else the only one it begins of those made up:
                        12 hexadecimal digits, Docker's 64
    containers.delete   {id, force, volumes} -> {}      refused while a task exists; force kills and deletes it;
                        volumes: those too that were made for it without a name
    containers.forget   {id} -> {}                      as delete, but its snapshot stays, as anybody's
    containers.checkpoint {id, name, rw, image, task, ends} -> {image, digest}   as an image called `name`; ends: with task
    containers.restore  {id, name, rw, live, trust} -> {id}   trust: what another manager has made, too
    files.look          {id, path} -> {mode, size_bytes, mtime_ns, link, target_mode}   paths are bytes;
                        target_mode: of what a link leads to, 0: nothing
    files.pack          {id, path, name, follow, target} -> {entries}   a tar whose first entry is `name`
    files.extract       {id, path, source, uid, gid} -> {entries}       a tar into a directory; uid and gid
                        null: as the tar says; source, target: descriptors of the caller
    files.export        {id, target} -> {entries}       the root file system without mounts, as a tar
    files.changes       {id, target} -> {entries}       A, C or D, a path and a NUL byte for each
    files.commit        {id, name, author, message, changes: [text], pause} -> {image, digest}
    volumes.create      {name, labels, driver, options} -> {volume}     name null: one is made up
    volumes.list        {} -> {volumes: [{name, labels, anonymous, created_at, mountpoint, containers: [id]}]}
    volumes.get         {name, size} -> {volume: {…as listed, size_bytes}}
    volumes.delete      {name} -> {}                    refused while a container's record names it
    volumes.prune       {all} -> {names, size_bytes, problems: [text]}  all: named ones too
    oci.spec            {} -> {spec: text}              what a container starts from
    tasks.create        {id, stdin, stdout, stderr, rows, cols, replace, checkpoint,
                        checkpoint_image, trust, log_uri} -> {pid}
                        replace: an ended task makes way; checkpoint: a directory to go on from,
                        "" for none, or checkpoint_image: it runs before it is started;
                        log_uri: in place of the container's
    tasks.checkpoint    {id, directory, leave_running} -> {}    the directory is there and empty
    tasks.start         {id} -> {pid}
    tasks.get           {id} -> {task}
    tasks.list          {} -> {tasks: [{id, pid, status, image, exit_status, exited_at, cause, reason,
                        created_at, started_at, defined_at, health, restarts, restart_at, networks: [{network, ifname, addresses, gateways,
                        mac}], ports: [{host_ip, host_port, container_port, protocol}]}]}
    tasks.kill          {id, exec_id, signal, all} -> {}
    tasks.stop          {id, timeout_s, signal} -> {exit_status, exited_at, cause}    null: the container's own;
                        it is not started again by its policy
    tasks.pause         {id} -> {}
    tasks.resume        {id} -> {}
    tasks.exec          {id, exec_id, args, env, cwd, user, terminal, privileged, stdin, stdout, stderr,
                        rows, cols, log_uri} -> {exec_id, pid}   exec_id null: one is made up; of those that
                        have ended, the newest 256 of a task are known
    tasks.attach        {id, exec_id, stdin, stdout, stderr} -> {terminal}
    tasks.resize        {id, exec_id, rows, cols} -> {}
    tasks.close_stdin   {id, exec_id} -> {}
    tasks.wait          {id, exec_id, reissued, until_removed, delete} -> {exit_status, exited_at, cause}
                        reissued: asked before of a manager that is gone; until_removed: of a container
                        with auto_remove, answered when it is gone too; delete: of an exec, which
                        is deleted when it has ended; the answer has `deleted`, true, then
    tasks.delete        {id, exec_id, force} -> {exit_status, exited_at, cause}
    tasks.pids          {id} -> {processes: [{pid, exec_id}]}
    tasks.metrics       {ids: [id]} -> {metrics: [{id, status, timestamp, version, values, network: {rx_bytes,
                        tx_bytes}}], memory_bytes}      ids empty: all; version: 1 or 2 of the cgroups, 0 of a
                        task that has ended; values: as containerd's message of that version names
                        them; network null: the host's; memory_bytes: what the host has
    tasks.top           {id} -> {processes: [{…as of pids, args, container_pid, ppid, uid, state, cpu_s}]}
    networks.list       {} -> {networks: [{name, version, types, path, ours, default, subnets,
                        reason}], unusable: [{path, reason}]}     reason: why it cannot be used now
    networks.get        {name} -> {network: {…as listed, config, containers: [{namespace, id, ifname,
                        addresses}]}}
    networks.create     {name, driver, subnets, gateways, ip_range, ipv6, internal, parent, mtu} ->
                        {name, path}                    driver: bridge, macvlan, ipvlan, ptp
    networks.delete     {name} -> {}                    refused while used, or not made by networks.create
    networks.connect    {id, name, ip, ip6, mac} -> {ifname, addresses}     "" of one that does not run
    networks.disconnect {id, name} -> {}
    networks.check      {id} -> {checked: [{namespace, id, network, ifname, status, reason, repaired}]}
    networks.reload     {id, force} -> {checked}        attached anew where CHECK failed, or by force
    events.newest       {} -> {sequence}
    events.subscribe    (stream) {since, follow, since_time, until, until_time, filters, expressions} -> items {sequence,
                        timestamp, namespace, topic, event}
                        since: a sequence (0: all that is kept), or null for new ones only; out-of-range for
                        one that was never given, resource-exhausted when the next one is no longer kept;
                        times: only what happened from, until then; filters: KEY=VALUE as docker's,
                        expressions: containerd's (daemon/events/wishes.py); namespace "" in metadata: all
    logs.read           (stream) {id, follow, tail, since, until} -> items {timestamp, stream, data}
                        stream: 1 stdout, 2 stderr, 3 the shim's own notice; tail in lines
                        or null; since, until: times; chunks after the one, up to the other
    system.shims        {} -> {shims: [{namespace, id, pid, incarnation, version, protocol, protocols, state, reason, started_at, pss_bytes}]}
    system.upgrade_check {version, protocols, schema, schema_newest} -> {version, running, can_take_over, shims, refused: [{namespace, id, pid, version, protocols}], problems: [text], warnings: [text]}
    system.accept_loss  {} -> {loss}
    system.reload       {} -> {changed: [text], at_next_start: [key]}
    system.stop_containers  (stream) {timeout_s} -> items {namespace, id, exit_status, error},
                        end {stopped, failed}           all namespaces; exit_status null: it runs on
    system.df           {} -> {usage: [{kind, count, size_bytes}]}
    system.prune        {dry_run} -> {pruned: [{namespace, content: [digest], snapshots: [{snapshotter,
                        key}], images: [name], ingests: [ref], size_bytes}]}
    system.check        (stream) {repair} -> items {kind, name, namespace, problem, outcome, note}, end {blobs,
                        bytes, snapshots, found, repaired}      kind: database, content, file, image,
                        snapshot, directory; outcome: found, repaired, left
    system.doctor       {} -> {findings: [{check, status, found, advice}]}     status: ok, warning, problem
    system.configuration {} -> {config: text}           as `lighterd config dump`, without its secrets
    system.plugins      {} -> {plugins: [{type, id, architecture, problem}]}
    system.processes    {} -> {processes: {manager, spawner: {pid, pss_bytes, rss_bytes, cpu_s, threads, fds}}}
    system.health       {} -> {status, generation, clients, shims, fds, dropped, subscribers,
                        coroutines, stands_in, loss}

exec_id "" means the container's own process. The status of a task is one of created, running,
paused, stopped, unknown.
"""

# Lists come in pages: at most this many rows in one reply, and fewer of large ones.
PAGE_ROWS = 500

STDOUT = 1
STDERR = 2
NOTICE = 3
