#!/bin/sh
# Run once, on an empty volume, by the entrypoint of the PostgreSQL image.
set -eu
for name in prefect mlflow; do
  psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres --command "CREATE DATABASE $name"
done
