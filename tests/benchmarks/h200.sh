#!/usr/bin/env bash
# Measure everything on a machine with a GPU (an H100 or an H200), in legs of at most LEG_SECONDS.
#
#   bash tests/benchmarks/h200.sh LEG [flags of main.py ...]
#
# The legs:
#
#   ceilings  rate of a bf16 matrix product and of a copy, and the parts of a step
#   step, augment, knn   the benchmarks with these names; packages that are not installed are left out
#   pretrain  main.py with its defaults (800 epochs, kNN after each), or with the given flags
#   measure   kNN, linear classifiers, and fine-tuning on 10 % of the labels, for the finished run.
#             Measurements that have a result already are not repeated.
#   report    the report of the run
#   all       all of these, in as many legs as needed. If one fails, it is named and the next one
#             starts.
#   lease1, lease2, lease3   one call for a machine that is there for LEASE_SECONDS: it measures the step,
#             trains a run of its own (4 views; 2 views and 2 heavy views; 4 views with another seed),
#             brings its backbone home and evaluates it. See tests/benchmarks/lease.py.
#
# pretrain and measure return 3 if they are not finished: repeat the same call to continue. A leg ends
# by SIGTERM when its time is over.
#
# These environment variables can be set (their defaults are in parentheses):
#
#   PYTHON (python3)    the Python to use
#   RUNS (./runs)       folder of the runs
#   NAME (h200)         name of the run; of a lease: the name of the lease
#   RESULTS (./results) folder for the results, which are few and small files
#   OUT (RESULTS)       folder for the results of a lease
#   LEG_SECONDS (540)   seconds of a leg; a process that does not stop is killed 30 s later
#   LEASE_SECONDS (580) seconds of a lease, from the start of this script to its end
#   CIFAR10_DIR (none)  folder of the data set, for a lease. --data-dir wins.
#   WHEELS (./wheels)   folder of wheels to install, for a machine without a network. The default is
#                       used if it exists.
#   SITE (in /tmp)      folder into which the wheels are installed
#   BENCH_ceilings ...  flags of the benchmark with this name, for small machines
#   MEASURE (none)      flags of the commands of `measure` and `report`
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
leg=${1:?name a leg: ceilings, step, augment, knn, pretrain, measure, report, all or lease1 to lease3}
shift
RESULTS=${RESULTS:-./results}
case $leg in
    lease*) NAME=${NAME:-$leg} RESULTS=${OUT:-$RESULTS} ;;
    *) NAME=${NAME:-h200} ;;
esac
PYTHON=${PYTHON:-python3} RUNS=${RUNS:-./runs}
LEG_SECONDS=${LEG_SECONDS:-540} LEASE_SECONDS=${LEASE_SECONDS:-580} SITE=${SITE:-${TMPDIR:-/tmp}/h200-site}
if [ -z "${WHEELS:-}" ] && [ -d wheels ]; then WHEELS=wheels; fi
WHEELS=${WHEELS:-}
RUN=$RUNS/$NAME
deadline=$LEG_SECONDS  # in seconds since the start of this script
mkdir -p "$RESULTS"

# Install the wheels, unless they are installed already. This needs no network.
install_wheels() {
    wheels=$(ls "$WHEELS"/*.whl) || return
    if [ "$wheels" != "$(cat "$SITE/wheels.txt" 2> /dev/null)" ]; then
        "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" \
            "$WHEELS"/*.whl || return
        echo "$wheels" > "$SITE/wheels.txt"
    fi
    PYTHONPATH=$(cd "$SITE" && pwd)${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
}

# Run Python with the given arguments. The status is 124 if the leg is over before it ends.
run() {
    left=$((deadline - SECONDS))
    [ "$left" -gt 0 ] || return 124
    timeout --signal TERM --kill-after 30 "$left" "$PYTHON" "$@" 2>&1
}

# Copy the small files of run $1 to folder $2: rows, summary, settings, views, curves and results.
copy_results() {
    for file in metrics.jsonl summary.json config.yaml views.png; do
        [ -f "$1/$file" ] && cp "$1/$file" "$2/"
    done
    [ -d "$1" ] && (cd "$1" && find events* results \( -name 'events*' -o -name 'summary.json' \) 2> /dev/null) \
        | tar -czf "$2/curves.tar.gz" -C "$1" -T -
    return 0
}

benchmark() {
    flags=BENCH_$1
    # shellcheck disable=SC2086
    run "tests/benchmarks/$1.py" ${!flags:-} | tee "$RESULTS/$1.txt"
}

# Train or resume the run with the given flags.
pretrain() {
    run main.py --save-dir "$RUNS" --exp-name "$NAME" "$@" | tee -a "$RESULTS/pretrain.txt"
    status=$?
    copy_results "$RUN" "$RESULTS"
    case $status in
        0) return 0 ;;
        124 | 143) echo "the leg is over, the run is not: call this again"; return 3 ;;
        3) return 1 ;;  # the run collapsed, so a further leg would not help
        *) return "$status" ;;
    esac
}

count_results() {
    find "$RUN/results" -name summary.json 2> /dev/null | wc -l
}

measure() {
    failures=0
    before=$(count_results)
    while read -r result command; do
        [ -f "$RUN/results/$result/summary.json" ] && continue
        # shellcheck disable=SC2086
        run main.py $command --checkpoint "$RUN" ${MEASURE:-} < /dev/null | tee -a "$RESULTS/measure.txt"
        status=$?
        [ "$status" -eq 124 ] && break
        [ "$status" -eq 0 ] || failures=1
    done <<< "knn knn
linear linear
linear_augment linear --augment
finetune_0.1 finetune --label-fraction 0.1 --seeds 0 1 2"
    copy_results "$RUN" "$RESULTS"
    [ "${status:-0}" -eq 124 ] || return "$failures"
    # The leg is over. Another one helps only if this one has measured something.
    if [ "$(count_results)" -eq "$before" ]; then
        echo "h200.sh: a leg of $LEG_SECONDS s is too short for '$command'. Set a larger LEG_SECONDS." >&2
        return 1
    fi
    echo "the leg is over, not all is measured: call this again"
    return 3
}

report() {
    # shellcheck disable=SC2086
    run main.py report "$RUN" ${MEASURE:-} | tee "$RESULTS/report.txt" || return
    cp "$RUN/report/index.html" "$RESULTS/report.html"
}

# Call a leg again and again until it is finished.
repeat() {
    status=3
    while [ "$status" -eq 3 ]; do
        deadline=$((SECONDS + LEG_SECONDS))
        "$@"
        status=$?
    done
    [ "$status" -eq 0 ] && return
    echo "h200.sh: failed with status $status: $*" >&2
    failed=1
}

if [ -n "$WHEELS" ]; then
    install_wheels || {
        echo "h200.sh: the wheels in $WHEELS cannot be installed into $SITE" >&2
        exit 2
    }
fi
case $leg in
    ceilings | step | augment | knn) benchmark "$leg" ;;
    pretrain) pretrain "$@" ;;
    lease1 | lease2 | lease3)
        # exec: a signal to this process reaches Python, which then brings the results home.
        exec "$PYTHON" tests/benchmarks/lease.py "$leg" --seconds $((LEASE_SECONDS - SECONDS)) \
            --out "$RESULTS" --run "$RUN" "$@"
        ;;
    measure | report) "$leg" ;;
    all)
        failed=0
        for name in ceilings step augment knn; do repeat benchmark "$name"; done
        repeat pretrain "$@"
        if [ -f "$RUN/summary.json" ]; then
            repeat measure
            repeat report
        fi
        exit "$failed"
        ;;
    *)
        echo "h200.sh: $leg is no leg" >&2
        exit 2
        ;;
esac
