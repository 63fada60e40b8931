#!/usr/bin/env bash
# TCP throughput by iperf3 between two pods: a bare veth pair, a switch of ours, a Linux bridge, in interleaved rounds.
# Usage, as root: docs/iperf3-rounds.sh [ROUNDS] [SECONDS]. Needs iperf3, iproute2 and a release build of veth.
# Makes namespaces named ipr-*, the bridge iprbr and the topology `iperf`, and removes them again.
set -euo pipefail
rounds=${1:-10} seconds=${2:-2}
veth=${VETH:-$(dirname "$0")/../target/release/veth}
out=$(mktemp)
servers=()

clean() {
    for server in "${servers[@]}"; do kill "$server" 2>/dev/null || true; done
    for ns in ipr-d1 ipr-d2 ipr-b1 ipr-b2; do ip netns del "$ns" 2>/dev/null || true; done
    ip link del iprbr 2>/dev/null || true
    "$veth" down iperf >/dev/null 2>&1 || true
    rm -f "$out"
}
trap clean EXIT

for ns in ipr-d1 ipr-d2 ipr-b1 ipr-b2; do ip netns add "$ns"; done
ip link add eth0 netns ipr-d1 type veth peer name eth0 netns ipr-d2
ip link add iprbr type bridge nf_call_iptables 0 nf_call_ip6tables 0 nf_call_arptables 0
ip link set iprbr up
for n in 1 2; do
    ip link add "ipr-h$n" type veth peer name eth0 netns "ipr-b$n"
    ip link set "ipr-h$n" master iprbr up
    for path in d b; do
        ip -n "ipr-$path$n" addr add "10.201.0.$n/24" dev eth0
        ip -n "ipr-$path$n" link set eth0 up
    done
done
"$veth" up --name iperf --pods 2 >/dev/null

# path, namespace of the client, namespace and address of the server
paths="direct ipr-d1 ipr-d2 10.201.0.2
switch iperf-pod1 iperf-pod2 10.200.0.2
bridge ipr-b1 ipr-b2 10.201.0.2"

while read -r _ _ server _; do
    nsenter --net="/run/netns/$server" iperf3 -s >/dev/null 2>&1 &
    servers+=($!)
done <<<"$paths"
sleep 0.5

for round in $(seq 0 "$rounds"); do
    while read -r path client _ address; do
        rate=$(nsenter --net="/run/netns/$client" iperf3 -c "$address" -C cubic -A 0,1 -t "$seconds" -f m </dev/null |
            awk '/receiver/ {print $7}')
        # The first round warms caches and neighbours.
        [ "$round" -eq 0 ] || echo "$round $path $rate" >>"$out"
    done <<<"$paths"
done

awk '{ rate[$1, $2] = $3; if ($1 > n) n = $1 }
function sort(a, n,   i, j, t) {
    for (i = 2; i <= n; i++) { t = a[i]; for (j = i - 1; j > 0 && a[j] > t; j--) a[j + 1] = a[j]; a[j + 1] = t }
}
function quantile(a, n, q,   at, low) { at = 1 + (n - 1) * q; low = int(at); return a[low] + (at - low) * (a[low < n ? low + 1 : n] - a[low]) }
END {
    split("direct switch bridge", names)
    printf "%-8s %14s %40s\n", "path", "median Mbit/s", "ratio to direct in the same round"
    for (p = 1; p <= 3; p++) {
        for (i = 1; i <= n; i++) { v[i] = rate[i, names[p]]; r[i] = v[i] / rate[i, "direct"] }
        sort(v, n); sort(r, n)
        printf "%-8s %14.0f   median %.3f, middle half %.3f to %.3f, %d rounds\n", names[p], quantile(v, n, 0.5),
            quantile(r, n, 0.5), quantile(r, n, 0.25), quantile(r, n, 0.75), n
    }
}' "$out"
