#!/bin/bash
# Process 1 of a node: mounts what is the node's own, then runs the node's programs.
#
# node.py starts it in new mount, pid, uts and ipc namespaces, with NODE_DIR, NODE_NAME,
# NODE_ADDRESS, PROGRAMS and PYTHON. When it is killed, the kernel ends every process of the
# node and drops every mount, as a power cut would.
set -eu

mount --make-rshared /
while read -r own place; do
    mount --bind "$NODE_DIR/$own" "$place"
done <"$NODE_DIR/etc/mounts"
mount --bind "$NODE_DIR/etc/boot-id" /proc/sys/kernel/random/boot_id
hostname "$NODE_NAME"

# Runs a program and, as systemd does, runs it again when it ends: kubelet gives up where
# containerd answers but is not ready for it.
run() {
    local name=$1
    shift
    while :; do
        "$@" >>"/var/log/$name.log" 2>&1 || true
        sleep 0.2
    done &
}

run containerd containerd --config "$NODE_DIR/etc/containerd.toml"
until ctr version >/dev/null 2>&1; do
    sleep 0.05
done
rm -f /var/lib/kubelet/device-plugins/*.sock
run device-plugin "$PYTHON" -m tests.cluster.device_plugin

kubelet() {
    rm -f /var/lib/kubelet/device-plugins/*.offered # node_config.py: what its login waits for
    "$PROGRAMS/kubelet" --config "$NODE_DIR/etc/kubelet.json" \
        --kubeconfig "$NODE_DIR/etc/kubelet.kubeconfig" \
        --hostname-override "$NODE_NAME" --node-ip "$NODE_ADDRESS" \
        --node-labels nvidia.com/gpu.present=true # as GPU feature discovery would
}
run kubelet kubelet
run kube-proxy "$PROGRAMS/kube-proxy" --config "$NODE_DIR/etc/kube-proxy.json"

# bash collects the orphans that a process 1 is given, as long as it waits for something.
while :; do
    sleep 3600 &
    wait $!
done
