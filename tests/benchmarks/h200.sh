#!/usr/bin/env bash
# The whole measurement on a GPU box, in legs of at most LEG_SECONDS that resume one another:
#
#   bash tests/benchmarks/h200.sh ceilings|step|knn|augment|pretrain|measure|report|all [flags of main.py ...]
#
#   ceilings  bf16 matrix product, copy, the parts of a step
#   step, knn, augment   the benchmarks of the same names
#   pretrain  main.py with its defaults (800 epochs, kNN of each), or the flags given; cut off by SIGTERM when the leg is
#             over, and resumed by the next call. Its status is 3 while there is more to do.
#   measure   kNN by every protocol, linear probes, fine-tuning on 10 % of the labels, of the finished run
#   report    the page of the run with all that was measured
#   all       one after another, as many legs as it takes
#
# Set in the environment: PYTHON (python3), RUNS (./runs), NAME (h200), RESULTS (./results: what to bring home), LEG_SECONDS
# (540); for small machines, BENCH_ceilings and its like (flags of that benchmark) and MEASURE (of the measuring
# commands and the report).
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3} RUNS=${RUNS:-./runs} NAME=${NAME:-h200} RESULTS=${RESULTS:-./results}
LEG_SECONDS=${LEG_SECONDS:-540}
RUN=$RUNS/$NAME
leg=${1:?which leg: ceilings, step, knn, augment, pretrain, measure, report or all}
shift
mkdir -p "$RESULTS"

bring_home() {  # few and small files: the rows, the summary, the settings, the curves, the tables
    for file in metrics.jsonl summary.json config.yaml views.png; do
        [ -f "$RUN/$file" ] && cp "$RUN/$file" "$RESULTS/"
    done
    [ -d "$RUN" ] && tar -czf "$RESULTS/curves.tar.gz" -C "$RUN" $(cd "$RUN" && find tensorboard results \
        \( -name 'events*' -o -name 'summary.json' \) 2> /dev/null)
    return 0
}

benchmark() {
    flags=BENCH_$1
    # shellcheck disable=SC2086
    timeout "$LEG_SECONDS" "$PYTHON" "tests/benchmarks/$1.py" ${!flags:-} 2>&1 | tee "$RESULTS/$1.txt"
}

pretrain() {
    timeout --signal TERM --kill-after 60 "$LEG_SECONDS" \
        "$PYTHON" main.py --save-dir "$RUNS" --exp-name "$NAME" "$@" 2>&1 | tee -a "$RESULTS/pretrain.txt"
    status=${PIPESTATUS[0]}
    bring_home
    case $status in
        0) return 0 ;;
        124 | 143) echo "the leg is over, the run is not: call this again"; return 3 ;;
        *) return "$status" ;;
    esac
}

measure() {
    status=0
    for command in "knn" "linear" "linear --augment" "finetune --label-fraction 0.1 --seeds 0 1 2"; do
        # shellcheck disable=SC2086
        timeout "$LEG_SECONDS" "$PYTHON" main.py $command --checkpoint "$RUN" ${MEASURE:-} 2>&1 \
            | tee -a "$RESULTS/measure.txt" || status=1
    done
    bring_home
    return $status
}

report() {
    # shellcheck disable=SC2086
    timeout "$LEG_SECONDS" "$PYTHON" main.py report "$RUN" ${MEASURE:-} 2>&1 | tee "$RESULTS/report.txt" || return 1
    cp "$RUN/report/index.html" "$RESULTS/report.html"
}

case $leg in
    ceilings | step | knn | augment) benchmark "$leg" ;;
    pretrain) pretrain "$@" ;;
    measure) measure ;;
    report) report ;;
    all)
        for each in ceilings step knn augment; do benchmark "$each" || exit; done
        pretrain "$@"
        while status=$?; [ "$status" -eq 3 ]; do pretrain "$@"; done
        [ "$status" -eq 0 ] && measure && report
        ;;
    *) echo "h200.sh: no leg $leg" >&2; exit 2 ;;
esac
