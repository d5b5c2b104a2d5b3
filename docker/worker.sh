#!/bin/sh
# Brings the deployments of its pool up to date, then works for it. What a person set on the server,
# as schedules and their parameters, stays.
set -eu

pool=${SDPO_WORK_POOL:-sdpo}
set -- --pool "$pool" --folder "$PWD" --suffix "${SDPO_DEPLOYMENT_SUFFIX:-}"
if [ -n "${SDPO_REPORTS:-}" ]; then
    set -- "$@" --reports "$SDPO_REPORTS"
fi
python -m flows.server.deploy "$@"
exec prefect worker start --pool "$pool" --type process --with-healthcheck
