#!/usr/bin/env bash
# The whole measurement on a GPU box (an H100 or an H200, whichever is there), in legs of at most LEG_SECONDS:
#
#   bash tests/benchmarks/h200.sh ceilings|step|augment|knn|pretrain|measure|report|race|all [flags of main.py ...]
#
#   ceilings  bf16 matrix product, copy, the parts of a step
#   step, augment, knn   the benchmarks of the same names; peers that are not installed are left out
#   pretrain  main.py with its defaults (800 epochs, kNN of each), or the flags given
#   measure   kNN by every protocol, linear probes, fine-tuning on 10 % of the labels, of the finished run: what has its
#             result already is not measured again
#   report    the page of the run with all that was measured
#   race      4 views, 200 epochs, in a run of its own (NAME-race); kNN with k = 10 after the last, and the time it took
#   all       one after another but for the race, as many legs as it takes; what fails is said, and the rest goes on
#
# pretrain, measure and race return 3 while there is more to do: the same call goes on. A leg that is over ends by SIGTERM.
#
# Set in the environment: PYTHON (python3), RUNS (./runs), NAME (h200), RESULTS (./results: what to bring home), LEG_SECONDS
# (540; 30 more to one that does not stop); WHEELS (a folder of wheels, for a box that lacks packages and a network: they
# are installed into SITE, a folder in /tmp); for small machines, BENCH_ceilings and its like (flags of that benchmark)
# and MEASURE (of the measuring commands and the report).
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
PYTHON=${PYTHON:-python3} RUNS=${RUNS:-./runs} NAME=${NAME:-h200} RESULTS=${RESULTS:-./results}
LEG_SECONDS=${LEG_SECONDS:-540} WHEELS=${WHEELS:-} SITE=${SITE:-${TMPDIR:-/tmp}/h200-site}
RUN=$RUNS/$NAME
deadline=$LEG_SECONDS  # in seconds since this script began
leg=${1:?which leg: ceilings, step, augment, knn, pretrain, measure, report, race or all}
shift
mkdir -p "$RESULTS"

install_wheels() {  # once; pip needs no network for them
    wheels=$(ls "$WHEELS"/*.whl) || return
    if [ "$wheels" != "$(cat "$SITE/wheels.txt" 2> /dev/null)" ]; then
        "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" \
            "$WHEELS"/*.whl || return
        echo "$wheels" > "$SITE/wheels.txt"
    fi
    PYTHONPATH=$(cd "$SITE" && pwd)${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
}

run() {  # Python until the leg is over, which is status 124
    left=$((deadline - SECONDS))
    [ "$left" -gt 0 ] || return 124
    timeout --signal TERM --kill-after 30 "$left" "$PYTHON" "$@" 2>&1
}

bring_home() {  # of run $1 to folder $2, few and small files: the rows, the summary, the settings, the curves, the tables
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

train() {  # the run named $1, whose figures go to folder $2, with the flags that follow
    name=$1 home=$2 begun=$SECONDS
    shift 2
    mkdir -p "$home"
    [ -f "$RUNS/$name/summary.json" ] && begun=
    run main.py --save-dir "$RUNS" --exp-name "$name" "$@" | tee -a "$home/pretrain.txt"
    status=$?
    [ -n "$begun" ] && echo $((SECONDS - begun)) >> "$home/legs.txt"
    bring_home "$RUNS/$name" "$home"
    case $status in
        0) return 0 ;;
        124 | 143) echo "the leg is over, the run is not: call this again"; return 3 ;;
        3) return 1 ;;  # a collapse, which no further leg mends
        *) return "$status" ;;
    esac
}

pretrain() {
    train "$NAME" "$RESULTS" "$@"
}

race() {
    train "$NAME-race" "$RESULTS/race" --views 4 --batch-size 256 --epochs 200 --knn-k 10 --knn-every 10 "$@" || return
    run tests/benchmarks/race.py "$RUNS/$NAME-race" --legs "$RESULTS/race/legs.txt" | tee "$RESULTS/race.txt"
    status=$?
    [ "$status" -eq 124 ] && return 3
    return "$status"
}

count_results() {
    find "$RUN/results" -name summary.json 2> /dev/null | wc -l
}

measure() {
    failures=0 before=$(count_results)
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
    bring_home "$RUN" "$RESULTS"
    [ "${status:-0}" -eq 124 ] || return "$failures"
    [ "$(count_results)" -gt "$before" ] || { echo "h200.sh: a whole leg is too short for $command" >&2; return 1; }
    echo "the leg is over, not all is measured: call this again"
    return 3
}

report() {
    # shellcheck disable=SC2086
    run main.py report "$RUN" ${MEASURE:-} | tee "$RESULTS/report.txt" || return
    cp "$RUN/report/index.html" "$RESULTS/report.html"
}

legs_of() {  # as many as it takes
    while deadline=$((SECONDS + LEG_SECONDS)); "$@"; status=$?; [ "$status" -eq 3 ]; do :; done
    [ "$status" -eq 0 ] && return
    echo "h200.sh: failed with status $status: $*" >&2
    failed=1
}

if [ -n "$WHEELS" ]; then
    install_wheels || { echo "h200.sh: the wheels in $WHEELS cannot be installed into $SITE" >&2; exit 2; }
fi
case $leg in
    ceilings | step | augment | knn) benchmark "$leg" ;;
    pretrain | race) "$leg" "$@" ;;
    measure | report) "$leg" ;;
    all)
        failed=0
        for each in ceilings step augment knn; do legs_of benchmark "$each"; done
        legs_of pretrain "$@"
        if [ -f "$RUN/summary.json" ]; then
            legs_of measure
            legs_of report
        fi
        exit "$failed"
        ;;
    *) echo "h200.sh: no leg $leg" >&2; exit 2 ;;
esac
