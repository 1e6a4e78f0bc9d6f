#!/bin/bash
# One session of stock etcdctl against a FRESH three-member cluster, as a transcript on stdout.
#
#   etcdctl.sh ENDPOINT ALL_ENDPOINTS      endpoints as host:port; ENDPOINT is the member under test
#
# Every command is echoed with its output, its errors and its exit code. What two servers may choose freely is replaced
# by a word: ids, addresses, versions, sizes, terms, log positions, hashes, remaining and elapsed times. All else must be
# equal from run to run and from server to server, revisions included. Nothing here sleeps to wait: what comes later is
# polled for, up to a limit, and a limit that is reached shows in the transcript.
set -u -o pipefail
export ETCDCTL_API=3 LC_ALL=C
ENDPOINT=$1 ALL=$2
SCRATCH=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait 2>/dev/null; rm -rf "$SCRATCH"' EXIT

ctl() { timeout 30 etcdctl --endpoints "$ENDPOINT" --command-timeout 10s "$@"; }
# As ctl, but in place of this shell: only in the background, where $! is then the client itself.
away() { exec timeout 120 etcdctl --endpoints "$ENDPOINT" --command-timeout 10s "$@"; }

# Lines that the client logs about itself are dropped; the rest keeps all that a server must agree on.
normal() {
  sed -E \
    -e '/^\{"level":/d' \
    -e 's/\b[0-9a-f]{15,16}\b/ID/g' \
    -e 's/\b[0-9]{15,20}\b/ID/g' \
    -e 's/127\.0\.0\.1:[0-9]+/ADDR/g' \
    -e 's/took = [0-9.]+(ns|µs|ms|s)/took = TIME/' \
    -e 's/remaining\([0-9]+s\)/remaining(TIME)/' \
    -e 's/^"(RaftTerm|Hash|TTL)" : [0-9]+/"\1" : N/' \
    -e 's/("(raft_term|hash)":)[0-9]+/\1N/g'
}

title() { printf '\n## %s\n' "$*"; }

# Runs and shows one command. Its standard input is this function's.
run() {
  printf '$'; printf ' %q' "$@" | sed -E 's/\b[0-9a-f]{15,16}\b/ID/g'; echo
  ctl "$@" 2>&1 | normal
  local code=${PIPESTATUS[0]}
  [ "$code" = 0 ] || echo "exit $code"
}

# await SECONDS COMMAND...: polls until the command succeeds.
await() {
  local until=$((SECONDS + $1)); shift
  until "$@"; do
    [ $SECONDS -lt $until ] || { echo "TIMEOUT: $*"; return 1; }
    read -r -t 0.05 <> <(:) || :
  done
}
lines() { [ "$(wc -l < "$1")" -ge "$2" ]; }
holds() { grep -q -- "$2" "$1"; }
gone() { [ -z "$(ctl get --prefix "$1" --keys-only 2>/dev/null)" ]; }

# watched LINES ARGS...: watches until so many lines came, then ends the watch.
watched() {
  local count=$1; shift
  echo "\$ watch $*"
  : > "$SCRATCH/watch"
  away watch "$@" > "$SCRATCH/watch" 2>&1 & local pid=$!
  await 10 lines "$SCRATCH/watch" "$count"
  kill "$pid"; wait "$pid" 2>/dev/null
  normal < "$SCRATCH/watch"
}

title put, get
run put a/1 one
run put a/2 two
run put a/3 three
run put a/10 ten
run put b/1 uno
run put a/2 zwei --prev-kv
run put a/2 deux --prev-kv -w fields
run put empty ''
run put missing --ignore-value
run put a/1 --ignore-value
run get a/1
run get a/1 -w fields
run get a/1 -w json
run get a/1 --hex
run get nothing
run get nothing -w fields

title get: ranges
run get a/ --prefix
run get a/ --prefix --keys-only
run get a/ --prefix --print-value-only
run get a/ --prefix --limit=2
run get a/ --prefix --limit=2 -w fields
run get a/ --prefix --limit=4 -w fields
run get a/ --prefix --limit=9 --keys-only
run get a/10 a/3
run get a/10 a/3 --limit=1
run get a/3 a/10
run get a/2 --from-key --keys-only
run get '' --prefix --keys-only
run get '' --from-key --keys-only
for target in CREATE KEY MODIFY VALUE VERSION; do
  run get a/ --prefix --sort-by=$target --print-value-only
  run get a/ --prefix --sort-by=$target --order=DESCEND --print-value-only
  run get a/ --prefix --sort-by=$target --order=ASCEND --limit=2 --print-value-only
  run get a/ --prefix --sort-by=$target --keys-only
done
run get a/ --prefix --order=DESCEND --limit=1
run get a/1 --consistency=s
run get a/ --prefix --consistency=s --print-value-only
run get a/1 --consistency=x
run get a/ --prefix --from-key

title get: revisions
run get a/2 --rev=3
run get a/2 --rev=7
run get a/2 --rev=8 -w fields
run get a/ --prefix --rev=4 --print-value-only
run get a/ --prefix --rev=2 -w fields
run get a/1 --rev=1
run get a/1 --rev=99999

title del
run put d/1 x
run put d/2 y
run put d/3 z
run put d/4 z
run put d/5 z
run del d/1
run del d/1
run del d/2 --prev-kv
run del d/2 d/4 --prev-kv -w fields
run del d/ --prefix --prev-kv
run del d/ --prefix
run put z/1 x
run put z/2 y
run del z/1 --from-key
run get d/3 --rev=12
run get '' --prefix --keys-only

title txn
run txn <<'T'
value("a/1") = "one"
version("a/2") > "1"
create("nothing") = "0"

put t/1 yes
get a/ --prefix --keys-only
del b/1 --prev-kv

put t/1 no

T
run txn -w fields <<'T'
mod("a/1") < "1"

put t/1 yes

get t/1
put t/2 no
get t/2

T
run txn -i <<'T'
value("t/1") != "no"
create("t/1") > "2"

del t/ --prefix


T
run txn <<'T'
value("nothing") = ""


get nothing

T
run txn <<'T'

put t/3 only


T
run txn <<'T'

put same 1
put same 2


T
run txn <<'T'

put t/4 1
del t/ --prefix


T
run get t/ --prefix
run txn <<'T'
wrong("x") = "1"

T

title watch
R=$(ctl get a/1 -w json | sed -E 's/.*"revision":([0-9]+).*/\1/')
echo "revision $R"
run put w/1 a
run put w/2 b
run put w/1 c
run del w/2
run put v/1 other
run txn <<'T'

put w/3 d
put w/4 e
del w/1


T
run put w/end end
watched 24 w/ --prefix --rev=$((R + 1))
watched 30 w/ --prefix --rev=$((R + 1)) --prev-kv
watched 9 w/1 --rev=$((R + 1))
watched 9 w/2 w/4 --rev=$((R + 2))
watched 11 w/4 --rev=$((R + 3)) -w fields
watched 1 w/4 --rev=$((R + 2)) -w json

title watch: interactive, progress
echo '$ watch -i'
mkfifo "$SCRATCH/in"
away watch -i > "$SCRATCH/out" 2>&1 < "$SCRATCH/in" & WATCH=$!
exec 7> "$SCRATCH/in"
echo "watch w/end --rev=$((R + 7))" >&7
await 10 lines "$SCRATCH/out" 3
echo progress >&7
await 10 holds "$SCRATCH/out" progress
kill $WATCH; wait $WATCH 2>/dev/null; exec 7>&-
normal < "$SCRATCH/out"

title watch: from now on
echo '$ watch n/ --prefix'
: > "$SCRATCH/now"; away watch n/ --prefix > "$SCRATCH/now" 2>&1 & WATCH=$!
# Nothing tells when this watch stands, so puts go on until the first is seen; what follows must come in order.
N=0
until [ -s "$SCRATCH/now" ] || [ $N -ge 200 ]; do N=$((N + 1)); ctl put n/probe x > /dev/null; done
[ -s "$SCRATCH/now" ] && echo 'the watch stands'
ctl put n/1 first > /dev/null; ctl del n/1 > /dev/null; ctl put n/last last > /dev/null
await 10 holds "$SCRATCH/now" n/last
await 10 holds "$SCRATCH/now" '^last$'
kill $WATCH; wait $WATCH 2>/dev/null
sed '1,/^first$/{/^first$/!d}' "$SCRATCH/now" | normal
# From here on revisions depend on how many puts that took: they are shown as words.
revisions() { sed -E -e 's/"(Revision|CreateRevision|ModRevision)" : [0-9]+/"\1" : R/' -e 's/revision [0-9]+/revision R/'; }

title lease
run lease list
run lease grant 100
LEASE=$(ctl lease grant 3600 | awk '{print $2}')
SHORT=$(ctl lease grant 2 | awk '{print $2}')
run put l/1 x --lease="$LEASE"
run put l/2 y --lease="$LEASE"
run put l/short z --lease="$SHORT"
run put l/3 z --lease=12345
run put l/1 other --ignore-lease
run get l/1 -w fields | revisions
run lease list
run lease timetolive "$LEASE"
run lease timetolive "$LEASE" --keys
run lease timetolive 12345
run lease keep-alive "$LEASE" --once
run lease keep-alive 12345 --once
run lease revoke 12345
run lease revoke "$LEASE"
run lease revoke "$LEASE"
run lease timetolive "$LEASE"
run put l/4 x --lease="$LEASE"
await 20 gone l/short && echo 'the short lease ran out'
run get l/ --prefix
run lease timetolive "$SHORT"
run lease keep-alive "$SHORT" --once
run lease grant 0
run lease grant 9000000001
run lease grant x
KEPT=$(ctl lease grant 2 | awk '{print $2}')
ctl put l/kept x --lease="$KEPT" > /dev/null
: > "$SCRATCH/kept"; away lease keep-alive "$KEPT" > "$SCRATCH/kept" 2>&1 & KEEP=$!
await 20 lines "$SCRATCH/kept" 4
run get l/kept
sort -u "$SCRATCH/kept" | normal
kill $KEEP; wait $KEEP 2>/dev/null
await 20 gone l/kept && echo 'not kept any more, it ran out'

title lock
echo '$ lock K'
: > "$SCRATCH/lock"; mkfifo "$SCRATCH/let-go"
away lock K -- sh -c 'echo "first holds it"; read x < "$0"; echo "first lets go"' "$SCRATCH/let-go" > "$SCRATCH/lock" 2>&1 & FIRST=$!
await 10 holds "$SCRATCH/lock" holds
away lock K echo 'second holds it' >> "$SCRATCH/lock" 2>&1 & SECOND=$!
queued() { [ "$(ctl get K/ --prefix --keys-only | grep -c K/)" = 2 ]; }
await 10 queued
run get K/ --prefix --keys-only
echo > "$SCRATCH/let-go"
wait $FIRST; echo "first: exit $?"
wait $SECOND; echo "second: exit $?"
normal < "$SCRATCH/lock"
run get K/ --prefix
run lock K --ttl=5 -- sh -c 'echo "key ${ETCD_LOCK_KEY%/*}"; test "$ETCD_LOCK_REV" -gt 1'
run lock K -- sh -c 'exit 3'
run get K/ --prefix

title elect
: > "$SCRATCH/alpha"; : > "$SCRATCH/beta"; : > "$SCRATCH/listen"
away elect E alpha > "$SCRATCH/alpha" 2>&1 & ALPHA=$!
await 10 lines "$SCRATCH/alpha" 2
normal < "$SCRATCH/alpha"
away elect E -l > "$SCRATCH/listen" 2>&1 & LISTEN=$!
await 10 lines "$SCRATCH/listen" 2
away elect E beta > "$SCRATCH/beta" 2>&1 & BETA=$!
candidates() { [ "$(ctl get E/ --prefix --keys-only | grep -c E/)" = 2 ]; }
await 10 candidates
run get E/ --prefix --print-value-only --sort-by=CREATE
kill -TERM $ALPHA; wait $ALPHA; echo "alpha resigned: exit $?"
await 10 lines "$SCRATCH/beta" 2
normal < "$SCRATCH/beta"
await 10 lines "$SCRATCH/listen" 4
kill -TERM $BETA; wait $BETA; echo "beta resigned: exit $?"
kill $LISTEN; wait $LISTEN 2>/dev/null
normal < "$SCRATCH/listen"
await 10 gone E/
run get E/ --prefix

title compaction
run put c/1 a
run put c/1 b
run put c/1 c
R=$(ctl get c/1 -w json | sed -E 's/.*"revision":([0-9]+).*/\1/')
run compaction $((R - 1)) | sed -E "s/\b$((R - 1))\b/R-1/"
run compaction $((R - 1)) | sed -E "s/\b$((R - 1))\b/R-1/"
run compaction 2
run compaction 999999
run compaction x
run get c/1 --rev=$((R - 2)) | sed -E "s/\b$((R - 2))\b/R-2/"
run get c/1 --rev=$((R - 1)) | sed -E "s/\b$((R - 1))\b/R-1/"
run get c/1
run watch c/1 --rev=$((R - 2)) | sed -E "s/\b$((R - 2))\b/R-2/"
watched 6 c/1 --rev=$((R - 1)) | sed -E "s/\b$((R - 1))\b/R-1/"
run compaction "$R" --physical | sed -E "s/\b$R\b/R/"
run get c/1 --rev="$R" | sed -E "s/\b$R\b/R/"

title cluster, endpoints
run member list | sort
run member list -w fields | sed -E -e 's/^"(ID|MemberID|ClusterID)" : .*/"\1" : ID/' | sort | uniq -c | sed 's/^ *//'
run endpoint health
run endpoint health --cluster | sort
# version, size, term and log positions are each server's own; one of three leads, and none has errors
run endpoint status --cluster |
  sed -E 's/^(.*ADDR), ID, [0-9.]+, [0-9.]+ [kMG]?B, (true|false), (true|false), [0-9]+, [0-9]+, [0-9]+, (.*)$/\1, ID, VERSION, SIZE, leader \2, learner \3, errors [\4]/' | sort
ctl endpoint hashkv --cluster 2>&1 | tee "$SCRATCH/hash" | normal | sed -E 's/ [0-9]+$/ HASH/' | sort
echo "different hashes: $(awk '{print $2}' "$SCRATCH/hash" | sort -u | wc -l)"
run endpoint hashkv --rev=1

title alarm
run alarm list
run alarm disarm
run alarm list

title move-leader
status() { etcdctl --endpoints "$ALL" endpoint status 2>/dev/null; }
leader() { status | awk -F', ' '$5 == "true" {print $2}'; }
LEADER=$(leader)
LEADER_AT=$(status | awk -F', ' '$5 == "true" {print $1}')
OTHER=$(status | awk -F', ' '$5 == "false" {print $2; exit}')
OTHER_AT=$(status | awk -F', ' '$5 == "false" {print $1; exit}')
echo '$ move-leader, asked of a follower'
timeout 30 etcdctl --endpoints "$OTHER_AT" move-leader "$OTHER" 2>&1 | normal
echo '$ move-leader to nobody'
timeout 30 etcdctl --endpoints "$LEADER_AT" move-leader 1234 2>&1 | normal
echo '$ move-leader'
timeout 30 etcdctl --endpoints "$ALL" move-leader "$OTHER" 2>&1 | normal
moved() { [ "$(leader)" = "$OTHER" ]; }
await 10 moved && echo 'the other leads'
run put after/move ok
run get after/move

title the end
run del '' --prefix
run get '' --prefix
