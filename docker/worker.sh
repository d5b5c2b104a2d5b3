#!/bin/sh
# Brings the deployments up to date, then works for their pool. What a person set on the server, as
# schedules and their parameters, stays.
set -eu

pool=${SDPO_WORK_POOL:-sdpo}
python -m flows.server.deploy --pool "$pool" --folder "$PWD"
exec prefect worker start --pool "$pool" --type process --with-healthcheck
