"""Nothing that the project starts reports home: one list for DVC, MLflow and Prefect, and the same
in docker/Dockerfile, for the servers that start there without our code."""

TELEMETRY_OFF = {
    "DVC_NO_ANALYTICS": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # DO_NOT_TRACK alone does not stop Prefect
    "DO_NOT_TRACK": "1",
}
