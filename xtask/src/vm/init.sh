#!/bin/busybox sh
# The first process of a guest. What it says is read by `log.rs`.
/bin/busybox --install -s /bin
export PATH=/usr/bin:/usr/sbin:/bin HOME=/root

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
for module in /modules/*.ko; do
    insmod "$module"
done
ip link set lo up

export VETH_BIN=/bin/veth VETH_SKIPS=/tmp/skips VETH_FACTS=/tmp/facts
# Each takes as long as twenty elsewhere.
export VETH_RANDOM=8 VETH_FRAMES=20000 VETH_FUZZ_FRAMES=5000 VETH_FUZZ_RUNS=20000
# For whoever asks the harness for `-Zunstable-options --report-time`.
export RUSTC_BOOTSTRAP=1
touch "$VETH_SKIPS" "$VETH_FACTS"
eval "set -- $(cat /etc/harness)"
exec >/dev/ttyS1 2>&1
for test in /tests/*; do
    echo "@begin ${test##*/}"
    # One after the other: one processor has no use for two, and their time limits do.
    "$test" --test-threads=1 "$@"
    echo "@skips"
    cat "$VETH_SKIPS"
    : >"$VETH_SKIPS"
done
echo "@facts"
cat "$VETH_FACTS"
echo "@done"
poweroff -f
