#!/bin/sh
# runc as containerd of a node calls it, under the name of the runtime that a pod asked for.
#
# Only a container's creation has something added (node_runtime.py); NODE_DIR and PYTHON come
# down from node_init.sh.
for word; do
    if [ "$word" = create ]; then
        "$PYTHON" -I -S "$NODE_DIR/bin/node_runtime.py" "$(basename "$0")" "$@" || exit 1
        break
    fi
done
exec runc "$@"
