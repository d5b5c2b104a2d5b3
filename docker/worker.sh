#!/bin/sh
# Makes the deployments, then works for their pool. A second start changes nothing but what changed.
set -eu

pool=${SDPO_WORK_POOL:-sdpo}
prefect --no-prompt work-pool inspect "$pool" > /dev/null 2>&1 \
    || prefect --no-prompt work-pool create --type process "$pool"
prefect --no-prompt deploy --all
exec prefect worker start --pool "$pool" --type process --with-healthcheck
