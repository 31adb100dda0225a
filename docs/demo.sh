#!/usr/bin/env bash
# The tour behind `make demo`: a real image, a real container, and a manager that is killed under it.
#
# Every step checks what it shows; the first wrong result ends the tour with exit code 1. All of it
# happens in a directory of its own under /tmp, and nothing is left behind.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $EUID -eq 0 ]] || { echo "demo: needs root" >&2; exit 2; }

bin=${LIGHTER_BIN:-$PWD/.venv/bin}
base=$(mktemp -d /tmp/lighter-demo-XXXX)
instance=$(printf %s "$base/root" | sha256sum | cut -c1-8)
image=docker.io/library/busybox:test
manager=

ctl() { "$bin/ctl" "$@"; }

bold=
plain=
[[ -t 1 ]] && bold=$'\033[1m' plain=$'\033[0m'

say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }

# Words as a shell would take them back.
quoted() {
    local word
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=-]+$ ]] && printf ' %s' "$word" || printf " '%s'" "$word"
    done
}

# Show a command of ctl as a user would type it, then run it.
show() {
    printf '$ ctl%s\n' "$(quoted "$@")"
    ctl "$@"
}

fail() {
    printf 'demo: WRONG: %s\n' "$*" >&2
    tail -n 20 "$base/log" >&2 || true
    exit 1
}

# expect WHAT WANTED GOT
expect() { [[ $2 == "$3" ]] || fail "$1: expected '$2', got '$3'"; }

# until_true SECONDS WHAT COMMAND…
until_true() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        ((SECONDS < end)) || fail "$what"
        sleep 0.05
    done
}

answers() { ctl version >/dev/null 2>&1; }

start_manager() {
    printf '$ lighterd --root %s/root --state %s/state &\n' "$base" "$base"
    "$bin/lighterd" --root "$base/root" --state "$base/state" 2>>"$base/log" >&2 &
    manager=$!
    until_true 20 "lighterd answers" answers
}

kill_manager() {
    printf '$ kill -9 %s    (lighterd)\n' "$manager"
    kill -9 "$manager"
    wait "$manager" 2>/dev/null || true
    manager=
}

# What carries this instance's mark outside its directories.
leftovers() {
    grep "$base" /proc/self/mountinfo || true
    pgrep -af -- "--instance $instance" || true
    find /sys/fs/cgroup -maxdepth 4 -type d -path "*/lighter/$instance" 2>/dev/null || true
}

clean_up() {
    local code=$?
    trap - EXIT
    if [[ -n $manager ]] && kill -0 "$manager" 2>/dev/null; then
        for id in $(ctl containers ls -q 2>/dev/null); do
            ctl tasks delete --force "$id" >/dev/null 2>&1 || true
            ctl containers delete "$id" >/dev/null 2>&1 || true
        done
        kill "$manager"
        wait "$manager" || true
    fi
    local left
    left=$(leftovers)
    if [[ -n $left ]]; then
        printf 'demo: WRONG: left behind:\n%s\n' "$left" >&2
        code=1
    fi
    grep -q "$base" /proc/self/mountinfo || rm -rf "$base"
    exit "$code"
}
trap clean_up EXIT

status_of() { ctl tasks ls | awk -v id="$1" '$1 == id { print $3 }'; }
pid_of() { ctl tasks ls | awk -v id="$1" '$1 == id { print $2 }'; }
has_status() { [[ $(status_of "$1") == "$2" ]]; }

say "A manager of its own: root and state directory make an instance"
export LIGHTER_ADDRESS=$base/state/lighter.sock # as ctl finds it from here on
printf '$ export LIGHTER_ADDRESS=%s\n' "$LIGHTER_ADDRESS"
start_manager
show version

say "An image from this host's busybox, as an OCI archive; no registry is asked"
archive=$("$bin/python" tests/images.py)
archive=${archive#"$PWD/"}
show images import "$archive"
show images ls

say "Run a command and get its output and exit code"
output=$(show run --rm "$image" hello echo "hello from a container")
echo "$output"
expect "output" "hello from a container" "$(tail -n 1 <<<"$output")"
code=0
show run --rm "$image" seven sh -c 'exit 7' || code=$?
echo "exit code $code"
expect "exit code" 7 "$code"

say "A container that counts, detached"
# It counts to 200 in 10 s and ends with 42; each line says which.
show run -d "$image" counter sh -c 'i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo "line $i"; usleep 50000; done; exit 42'
show tasks ls
expect "status" RUNNING "$(status_of counter)"
pid=$(pid_of counter)

say "Another process in it"
output=$(show tasks exec --exec-id look counter sh -c 'echo "I see init: $(cat /proc/1/comm)"')
echo "$output"
expect "exec" "I see init: sh" "$(tail -n 1 <<<"$output")"

say "Pause it, resume it"
show tasks pause counter
expect "status" PAUSED "$(status_of counter)"
show tasks ls
show tasks resume counter
expect "status" RUNNING "$(status_of counter)"

say "Now kill -9 the manager. The container does not notice"
kill_manager
expect "the container's process" "sh" "$(cat "/proc/$pid/comm")"
echo "lighterd is gone; the container's process $pid lives: $(tr '\0' ' ' <"/proc/$pid/cmdline" | cut -c1-40)…"
sleep 2

say "Start it again: it adopts what runs"
start_manager
show tasks ls
expect "pid after adoption" "$pid" "$(pid_of counter)"
expect "status after adoption" RUNNING "$(status_of counter)"

say "Kill it once more, and let the container end while no manager is there"
kill_manager
gone() { [[ ! -e /proc/$pid ]]; }
until_true 40 "the container ends by itself" gone
start_manager
until_true 10 "the counter is listed as stopped" has_status counter STOPPED
show tasks ls

say "No byte and no exit code was lost"
show ps -a
grep -q 'Exited (42)' <<<"$(ctl ps -a)" || fail "the exit code: expected 42"
lines=$(ctl logs counter | wc -l)
echo "lines in its log: $lines"
expect "log" "$(seq -f 'line %.0f' 200 | sha256sum)" "$(ctl logs counter | sha256sum)"
show tasks delete counter
show containers delete counter

say "Stop it: no process, mount or cgroup of this instance is left"
kill "$manager"
wait "$manager" || fail "lighterd ended with $?"
manager=
nothing_left() { [[ -z $(leftovers) ]]; }
until_true 10 "something is left behind: $(leftovers)" nothing_left
echo "nothing is left"
