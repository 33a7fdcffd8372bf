#!/bin/sh
# Starts the run in $RUN_DIR, or goes on with it if an earlier life was ended there. Exit code 75 asks for another life.
# SHOAL_BIND and SHOAL_KEY come from the environment. --trust: the folder is this unit's own; a new container cannot tell that
# from its signature, because the secret of signatures was in the home of the one before.
set -eu
if [ -e "$RUN_DIR/config.toml" ]; then
    exec shoal resume "$RUN_DIR" --bind "$SHOAL_BIND" --trust
fi
exec shoal coordinator "$JOB" --run-dir "$RUN_DIR"
